"""Episodes: short encoded videos of the procedural world, the training data of Mini's transformer.

An episode has 11 blocks of latents with one change of attributes at a block boundary. A near one is a video
from its start. A far one begins with the first block of a video and goes on somewhere in the middle of the
same or another one: what the transformer sees long after the sink was made. An image is a near one whose
shape stands anywhere: it is made from its given first frame. Footage begins in the middle of a motion: its
first block is given. Half of the first prompts of these two name only the motion, or nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from longlive_core.geometry import TIME_STRIDE, num_frames
from longlive_core.vae.tiny import TinyAutoencoder

from .autoencoder import object_mask
from .world import Attributes, Motion, change_prompt, film, random_attributes, random_change

BLOCK = 3
NUM_BLOCKS = 11
SWITCHES = range(2, 9)
FAR_SWITCHES = range(4, 9)  # behind the sink, a whole window of the episode must have gone by
OBJECT_CELL = 8


class Kind(StrEnum):
    """How an episode begins; see above."""

    NEAR = auto()
    FAR = auto()
    IMAGE = auto()
    FOOTAGE = auto()

    @property
    def first_asked(self) -> int:
        """The first block that is asked for: those before it lack a past of their own, or are given."""
        return {Kind.FAR: 3, Kind.FOOTAGE: 1}.get(self, 0)


@dataclass
class Episodes:
    """A batch of one kind: latents [B, C, T, H, W], object cells [B, T, H, W], and three prompts each.

    `prompts` holds for each episode the sink's, the one before and the one after the switch. `context`
    [B, 96, T, H, W] is what the video follows, where VACE is trained.
    """

    latents: Tensor
    cells: Tensor
    prompts: list[tuple[str, str, str]]
    switch: int
    kind: Kind
    context: Tensor | None = None

    def pick(self, count: int, rng: torch.Generator) -> "Episodes":
        """A random batch of these episodes."""
        rows = torch.randint(len(self.prompts), (count,), generator=rng)
        prompts = [self.prompts[i] for i in rows.tolist()]
        context = None if self.context is None else self.context[rows]
        return Episodes(self.latents[rows], self.cells[rows], prompts, self.switch, self.kind, context)


@torch.no_grad()
def shoot(
    autoencoder: TinyAutoencoder, count: int, switch: int, kind: Kind, size: int, rng: torch.Generator
) -> Episodes:
    """Film and encode `count` episodes that change at block `switch`."""
    first = [random_attributes(rng) for _ in range(count)]
    is_far = kind is Kind.FAR
    before = [random_attributes(rng) if coin(rng) else a for a in first] if is_far else first
    after = [random_change(rng, a) for a in before]
    seam = num_frames(switch * BLOCK)
    length = num_frames(NUM_BLOCKS * BLOCK)
    if is_far:
        opening = film(first, Motion.at_start(count, rng), num_frames(BLOCK), size)[0]
        middle = Motion.anywhere(before, rng)
        rest = film(before, middle, length - num_frames(BLOCK), size, after, seam - num_frames(BLOCK))[0]
        frames = torch.cat((opening, rest), dim=1)
    else:
        frames = film(first, start_of(kind, first, rng), length, size, after, seam)[0]
    latents = torch.cat([autoencoder.encode(part) for part in frames.split(4)])
    opened = [first_prompt(kind, a, rng) for a in first]
    prompts = [
        (opening, prompt_of_change(a, b, rng) if is_far else opening, prompt_of_change(b, c, rng))
        for opening, a, b, c in zip(opened, first, before, after, strict=True)
    ]
    return Episodes(latents.half(), object_cells(frames), prompts, switch, kind)


def start_of(kind: Kind, attributes: list[Attributes], rng: torch.Generator) -> Motion:
    """Where and how the shapes of a video begin."""
    if kind is Kind.FOOTAGE:
        return Motion.anywhere(attributes, rng)
    return Motion.at_start(len(attributes), rng, is_anywhere=kind is Kind.IMAGE)


def first_prompt(kind: Kind, first: Attributes, rng: torch.Generator) -> str:
    """The first prompt: the full sentence; where frames are given, often only the motion."""
    if kind not in (Kind.IMAGE, Kind.FOOTAGE) or coin(rng):
        return first.prompt()
    return "it goes on" if kind is Kind.FOOTAGE and coin(rng) else f"it {first.motion}"


def object_cells(frames: Tensor) -> Tensor:
    """Frames [B, 4T - 3, 3, 8H, 8W] -> bool [B, T, H, W]: latent cells that the shape touches."""
    mask = object_mask(frames).amax(dim=2)
    mask = torch.nn.functional.max_pool2d(mask, OBJECT_CELL)
    later = mask[:, 1:].unflatten(1, (-1, TIME_STRIDE)).amax(dim=2)
    return torch.cat((mask[:, :1], later), dim=1) > 0


def prompt_of_change(before: Attributes, after: Attributes, rng: torch.Generator) -> str:
    """The full sentence, or only what changes: then the rest must be read from the past."""
    return after.prompt() if coin(rng) else change_prompt(before, after)


def coin(rng: torch.Generator) -> bool:
    """True half of the time."""
    return bool(torch.rand((), generator=rng) < 0.5)


def unnamed_prompt(prompt: str) -> str:
    """Of a first prompt only its motion: what is seen must be read from the past."""
    words = prompt.split()
    return prompt if words[0] == "it" else " ".join(("it", *words[3 : words.index("over")]))


class Pool:
    """Many episodes of every kind, kept in `path` for a resumed run; a share is rendered again at times.

    `shoot` makes those of one kind.
    """

    def __init__(
        self,
        autoencoder: TinyAutoencoder,
        per_kind: int,
        size: int,
        rng: torch.Generator,
        path: Path,
        kinds: Sequence[Kind] = tuple(Kind),
        shoot: Callable[..., Episodes] = shoot,
    ):
        self._autoencoder, self._per_kind, self._size, self._rng = autoencoder, per_kind, size, rng
        self._shoot_kind = shoot
        switches = {Kind.FAR: FAR_SWITCHES, Kind.FOOTAGE: FAR_SWITCHES}
        self.kinds = [(switch, kind) for kind in kinds for switch in switches.get(kind, SWITCHES)]
        self._episodes = self._load(path) if path.exists() else self._shoot_all(path)
        self._oldest = 0

    def _shoot_all(self, path: Path) -> list[Episodes]:
        episodes = [self._shoot(kind) for kind in tqdm(self.kinds, desc="episodes", mininterval=10)]
        torch.save([vars(e) | {"kind": str(e.kind)} for e in episodes], path)
        return episodes

    def _load(self, path: Path) -> list[Episodes]:
        saved = torch.load(path, weights_only=True)
        episodes = [Episodes(**{**fields, "kind": Kind(fields["kind"])}) for fields in saved]
        if episodes[0].latents.shape[-1] * OBJECT_CELL != self._size:
            raise ValueError(f"{path} holds episodes of another size than {self._size}; use another folder")
        kinds = {(e.switch, e.kind): e for e in episodes}
        return [kinds[kind] for kind in self.kinds]

    def _shoot(self, kind: tuple[int, Kind]) -> Episodes:
        return self._shoot_kind(self._autoencoder, self._per_kind, *kind, self._size, self._rng)

    def pick(self, count: int) -> Episodes:
        """A random batch of a random kind."""
        kind = int(torch.randint(len(self.kinds), (1,), generator=self._rng))
        return self._episodes[kind].pick(count, self._rng)

    def refresh(self) -> None:
        """Render the next kind again."""
        self._episodes[self._oldest] = self._shoot(self.kinds[self._oldest])
        self._oldest = (self._oldest + 1) % len(self.kinds)
