"""The procedural world of LongLive Mini: one soft-edged shape moving on a torus over a gradient.

Attributes in, pixel frames out; it knows nothing of models. Lengths are fractions of the frame's width,
so one world serves every size. Colours are RGB in [0, 1]. A change of attributes fades over a few frames
while position and velocity continue.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

COLOURS = {
    "red": (0.90, 0.16, 0.16),
    "green": (0.20, 0.82, 0.30),
    "blue": (0.22, 0.45, 1.00),
    "yellow": (0.96, 0.86, 0.20),
    "pink": (0.96, 0.42, 0.80),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = {
    "drifts left": (-1, 0),
    "drifts right": (1, 0),
    "drifts up": (0, -1),
    "drifts down": (0, 1),
    "circles": None,
    "bounces": None,
    "rests": (0, 0),
}
BACKGROUNDS = {  # colour at the top, colour at the bottom
    "navy": ((0.04, 0.06, 0.22), (0.10, 0.16, 0.42)),
    "forest": ((0.03, 0.16, 0.10), (0.10, 0.32, 0.18)),
    "plum": ((0.22, 0.06, 0.24), (0.40, 0.16, 0.34)),
    "slate": ((0.22, 0.24, 0.27), (0.38, 0.40, 0.43)),
}
RADIUS = 0.22
EDGE = 0.02  # half width of the soft edge
SPEED = 1.3 / 64  # per pixel frame
CIRCLE_FRAMES = 48  # one turn
BOUNCE_FRAMES = 32  # one up and down
BOUNCE_PEAK = 1.5  # peak speed of a bounce, in units of SPEED
FADE_FRAMES = 6
STEERING = 0.35  # share of the velocity error corrected in one frame
FINENESS = 8  # places are drawn to an eighth of a pixel
START_SPREAD = 0.10  # a video starts within this of the centre


@dataclass(frozen=True)
class Attributes:
    """What a prompt says of the frame; every field is a word of the grammar."""

    colour: str
    shape: str
    motion: str
    background: str

    def prompt(self) -> str:
        """The full sentence, e.g. `a red circle drifts left over navy`."""
        return f"a {self.colour} {self.shape} {self.motion} over {self.background}"


VALUES = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "motion": tuple(MOTIONS),
    "background": tuple(BACKGROUNDS),
}
PHRASES = {"colour": "turns {}", "shape": "turns into a {}", "motion": "{}", "background": "moves over {}"}


def combinations() -> list[Attributes]:
    """All 672 combinations, in a fixed order."""
    return [
        Attributes(colour, shape, motion, background)
        for colour in COLOURS
        for shape in SHAPES
        for motion in MOTIONS
        for background in BACKGROUNDS
    ]


def is_held_out(attributes: Attributes) -> bool:
    """One combination in eight is never trained on; every single word still is."""
    indices = [VALUES[name].index(getattr(attributes, name)) for name in VALUES]
    return (indices[0] + 2 * indices[1] + 3 * indices[2] + 5 * indices[3]) % 8 == 0


def changed(before: Attributes, after: Attributes) -> tuple[str, ...]:
    """Names of the attributes in which the two differ."""
    return tuple(name for name in VALUES if getattr(before, name) != getattr(after, name))


def change_prompt(before: Attributes, after: Attributes) -> str:
    """A sentence that names only what changes, e.g. `it turns into a blue star and rests`."""
    names = changed(before, after)
    parts = [PHRASES[name].format(getattr(after, name)) for name in names]
    if names[:2] == ("colour", "shape"):
        parts[:2] = [f"turns into a {after.colour} {after.shape}"]
    return "it " + " and ".join(parts) if parts else "it goes on"


def vocabulary() -> tuple[str, ...]:
    """Every word that a prompt may use, sorted."""
    sentences = [c.prompt() for c in combinations()] + [p.format("") for p in PHRASES.values()]
    return tuple(sorted({word for s in [*sentences, "it goes on and turns into a"] for word in s.split()}))


def random_attributes(rng: torch.Generator, held_out: bool = False) -> Attributes:
    """A random combination from the training set, or from the held-out one."""
    while True:
        picks = {name: values[_randint(rng, len(values))] for name, values in VALUES.items()}
        if is_held_out(attributes := Attributes(**picks)) == held_out:
            return attributes


def random_change(rng: torch.Generator, before: Attributes, held_out: bool = False) -> Attributes:
    """Change one to all attributes of `before`, each to another value."""
    while True:
        names = torch.randperm(len(VALUES), generator=rng)[: 1 + _randint(rng, len(VALUES))].tolist()
        picks = {}
        for name in (list(VALUES)[i] for i in names):
            others = [value for value in VALUES[name] if value != getattr(before, name)]
            picks[name] = others[_randint(rng, len(others))]
        if is_held_out(after := replace(before, **picks)) == held_out:
            return after


def _randint(rng: torch.Generator, high: int) -> int:
    return int(torch.randint(high, (1,), generator=rng))


@dataclass
class Motion:
    """Where the shapes of a batch are and how they move: `place`, `velocity` [B, 2] (x, y), `clock` [B]."""

    place: torch.Tensor
    velocity: torch.Tensor
    clock: torch.Tensor

    @classmethod
    def at_start(cls, batch: int, rng: torch.Generator, is_anywhere: bool = False) -> "Motion":
        """Standing near the centre, as a video of a prompt alone begins, or anywhere."""
        spread = 0.5 if is_anywhere else START_SPREAD
        place = 0.5 + spread * (2 * torch.rand(batch, 2, generator=rng) - 1)
        return cls(place, torch.zeros(batch, 2), torch.zeros(batch))

    @classmethod
    def anywhere(cls, attributes: list[Attributes], rng: torch.Generator) -> "Motion":
        """In the middle of a video that has shown `attributes` for a while."""
        clock = torch.randint(0, CIRCLE_FRAMES * BOUNCE_FRAMES, (len(attributes),), generator=rng).float()
        motions = [a.motion for a in attributes]
        return cls(torch.rand(len(attributes), 2, generator=rng), target_velocity(motions, clock), clock)

    def step(self, motions: list[str], restarted: torch.Tensor) -> None:
        """Advance by one frame; `restarted` [B] marks the shapes whose motion was just changed."""
        self.clock = torch.where(restarted, torch.zeros_like(self.clock), self.clock)
        self.velocity = self.velocity + STEERING * (target_velocity(motions, self.clock) - self.velocity)
        self.place = (self.place + self.velocity) % 1.0
        self.clock = self.clock + 1


def target_velocity(motions: list[str], clock: torch.Tensor) -> torch.Tensor:
    """Velocity [B, 2] that each motion asks for at its own clock [B]."""
    turn = 2 * math.pi * clock / CIRCLE_FRAMES
    circle = torch.stack((turn.cos(), turn.sin()), dim=-1)
    swing = -BOUNCE_PEAK * (2 * math.pi * clock / BOUNCE_FRAMES).cos()
    bounce = torch.stack((torch.zeros_like(swing), swing), dim=-1)
    rows = {"circles": circle, "bounces": bounce}
    picked = [
        rows[motion][i] if motion in rows else torch.tensor(MOTIONS[motion], dtype=torch.float32)
        for i, motion in enumerate(motions)
    ]
    return SPEED * torch.stack(picked)


@dataclass
class Look:
    """What the shapes of a batch look like: mixtures over COLOURS, SHAPES and BACKGROUNDS, each [B, n]."""

    colour: torch.Tensor
    shape: torch.Tensor
    background: torch.Tensor

    @classmethod
    def of(cls, attributes: list[Attributes]) -> "Look":
        """The pure look of each combination."""
        return cls(*(_one_hot(name, attributes) for name in ("colour", "shape", "background")))

    def toward(self, other: "Look", share: float) -> "Look":
        """The look `share` of the way to `other`."""
        pairs = ((self.colour, other.colour), (self.shape, other.shape), (self.background, other.background))
        return Look(*(torch.lerp(a, b, share) for a, b in pairs))


def _one_hot(name: str, attributes: list[Attributes]) -> torch.Tensor:
    indices = torch.tensor([VALUES[name].index(getattr(a, name)) for a in attributes])
    return torch.nn.functional.one_hot(indices, len(VALUES[name])).float()


def film(
    attributes: list[Attributes],
    motion: Motion,
    num_frames: int,
    size: int,
    then: list[Attributes] | None = None,
    switch_frame: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Film a batch of worlds, changing to `then` at `switch_frame`; `motion` moves on with the film.

    Returns the frames [B, F, 3, size, size] in [0, 1] and the places [B, F, 2] of the shapes.
    """
    before = Look.of(attributes)
    after = Look.of(then) if then else before
    turned = torch.tensor([a.motion != b.motion for a, b in zip(attributes, then or attributes, strict=True)])
    looks, places = [], []
    for frame in range(num_frames):
        switched = then is not None and frame >= switch_frame
        motions = [a.motion for a in (then if switched else attributes)]
        motion.step(
            motions, turned if then is not None and frame == switch_frame else torch.zeros_like(turned)
        )
        share = min(1.0, (frame - switch_frame + 1) / FADE_FRAMES) if switched else 0.0
        looks.append(before.toward(after, share))
        places.append(motion.place)
    places = torch.stack(places, dim=1)
    look = Look(
        *(torch.stack([getattr(k, n) for k in looks], dim=1) for n in ("colour", "shape", "background"))
    )
    frames = render(_flat(look), places.flatten(0, 1), size)
    return frames.unflatten(0, places.shape[:2]), places


def _flat(look: Look) -> Look:
    return Look(look.colour.flatten(0, 1), look.shape.flatten(0, 1), look.background.flatten(0, 1))


def render(look: Look, places: torch.Tensor, size: int) -> torch.Tensor:
    """Draw looks [B, n] at places [B, 2] -> [B, 3, size, size] in [0, 1]."""
    colours = look.colour @ torch.tensor(list(COLOURS.values()))
    gradients = torch.tensor(list(BACKGROUNDS.values())).flatten(1)
    top, bottom = (look.background @ gradients).unflatten(1, (2, 3)).unbind(1)
    down = ((torch.arange(size) + 0.5) / size).view(1, 1, size, 1)
    ground = torch.lerp(top[..., None, None], bottom[..., None, None], down).expand(-1, -1, -1, size)
    return torch.lerp(ground, colours[..., None, None], coverage(look.shape, places, size).unsqueeze(1))


def coverage(shapes: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
    """How much of every pixel the shape covers: mixtures [B, 4] at places [B, 2] -> [B, size, size].

    Distances are looked up, to an eighth of a pixel, in a table of one torus.
    """
    fine = size * FINENESS
    origin = (FINENESS / 2 - places * fine).round().long()
    columns, rows = ((origin[:, i, None] + FINENESS * torch.arange(size)) % fine for i in range(2))
    cells = (rows * fine).unsqueeze(2) + columns.unsqueeze(1)
    distance = torch.zeros(cells.shape)
    for index, table in enumerate(_distance_tables(size)):
        drawn = shapes[:, index].nonzero().squeeze(1)
        distance[drawn] += shapes[drawn, index, None, None] * table.take(cells[drawn])
    inside = (0.5 - distance / (2 * EDGE)).clamp(0, 1)
    return inside * inside * (3 - 2 * inside)


@lru_cache(maxsize=4)
def _distance_tables(size: int) -> list[torch.Tensor]:
    """Signed distance to each outline, from its centre at the corner of a torus of size * FINENESS cells."""
    axis = (torch.arange(size * FINENESS) / (size * FINENESS) + 0.5) % 1.0 - 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return [outline(x, y) for outline in (_circle, _square, _triangle, _star)]


def _circle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.square() + y.square()).sqrt() - RADIUS


def _square(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.86 * RADIUS


def _triangle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    slanted = x.abs() * math.cos(math.pi / 6) - y * math.sin(math.pi / 6)
    return torch.maximum(slanted, y) - 0.62 * RADIUS


def _star(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    tip, notch = 1.3 * RADIUS, 0.58 * RADIUS
    radius = (x.square() + y.square()).sqrt()
    wedge = 2 * math.pi / 5
    angle = (torch.atan2(x, -y) + wedge / 2).remainder(wedge) - wedge / 2
    along, across = radius * angle.cos(), radius * angle.sin().abs()
    edge_x, edge_y = notch * math.cos(wedge / 2) - tip, notch * math.sin(wedge / 2)
    length = math.hypot(edge_x, edge_y)
    return ((along - tip) * edge_y - across * edge_x) / length
