"""The judge: reads from pixels alone what a video of the procedural world shows.

Frames [F, 3, S, S] in [0, 1] in, words, places and motions out. It knows the world's palette and outlines but
no model and no prompt; it bears blur, noise and frames in the middle of a fade.
"""

import itertools
import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from .world import (
    BACKGROUNDS,
    BOUNCE_FRAMES,
    CIRCLE_FRAMES,
    COLOURS,
    FADE_FRAMES,
    MOTIONS,
    SHAPES,
    SPEED,
    VALUES,
    coverage,
    target_velocity,
)

CHUNK = 32  # frames read at once, which bounds the memory
GROUND_STRIDE = 4  # pixels between the samples that choose the background
GROUND_TOLERANCE = 0.25  # a sample further off than this belongs to the shape, however far it is
CONTRAST = 0.2  # RGB distance from the background from which on a pixel may show a shape
CORE = 0.75  # share of the strongest contrast that the shape's interior has
STRONGEST = 0.98  # quantile of the contrast; the smallest shape covers a tenth of the frame
SCALES = (0.85, 1.0, 1.15)  # of the outlines: a swollen circle is still a circle
LAG = 4  # frames over which a velocity is measured: jitter counts a quarter
STEP_UNIT = 64  # steps are given in pixels of the 64 px frame
STRAY = 1.5  # velocity error, in units of SPEED, beyond which a frame is just an outlier
WINDOW = 48
SHORTEST_WINDOW = 32


@dataclass
class Reading:
    """What every frame shows: indices [F] into COLOURS, SHAPES and BACKGROUNDS, place [F, 2] and mass [F].

    Places are (x, y) in [0, 1) on the torus. Mass is the share of the frame that the shape covers: 0.10 to
    0.15, or twice that for two shapes. At a mass near 0 colour, shape and place mean nothing.
    """

    colour: Tensor
    shape: Tensor
    background: Tensor
    place: Tensor
    mass: Tensor

    def names(self, frame: int) -> dict[str, str]:
        """Colour, shape and background of one frame in words."""
        indices = {"colour": self.colour, "shape": self.shape, "background": self.background}
        return {name: VALUES[name][int(index[frame])] for name, index in indices.items()}


def read(frames: Tensor) -> Reading:
    """Read every frame [F, 3, S, S] in [0, 1] by itself."""
    parts = [_read(part) for part in frames.float().split(CHUNK)]
    return Reading(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Reading)))


def _read(frames: Tensor) -> Reading:
    background, ground = _find_ground(frames)
    colour, cover = _find_shape(frames - ground, ground)
    shape, place = _match(cover)
    return Reading(colour, shape, background, place, (cover > 0.5).float().mean(dim=(1, 2)))


def _find_ground(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Frames [F, 3, S, S] -> index of the background [F] and its gradient [F, 3, S, 1].

    The gradient, possibly in the middle of a fade, is the one that most pixels agree with.
    """
    size = frames.shape[-1]
    grounds, owners = _grounds(size)  # [M, 3, S], [M]
    at = slice(GROUND_STRIDE // 2, None, GROUND_STRIDE)
    error = (frames[:, None, :, at, at] - grounds[:, :, at, None]).abs().sum(dim=2)  # -> [F, M, s, s]
    best = error.clamp(max=GROUND_TOLERANCE).mean(dim=(2, 3)).argmin(dim=1)
    return owners[best], grounds[best].unsqueeze(3)


@lru_cache(maxsize=4)
def _grounds(size: int) -> tuple[Tensor, Tensor]:
    """Every background and every step of every fade [M, 3, size], and which background each mostly is [M]."""
    ends = torch.tensor(list(BACKGROUNDS.values()))  # [n, 2, 3]
    shares = [
        torch.lerp(*torch.eye(len(ends))[[i, j]], step / FADE_FRAMES)
        for i, j in itertools.combinations(range(len(ends)), 2)
        for step in range(FADE_FRAMES + 1)
    ]
    shares = torch.stack(shares).unique(dim=0)
    top, bottom = torch.einsum("mn,nec->emc", shares, ends).unsqueeze(3)
    return torch.lerp(top, bottom, (torch.arange(size) + 0.5) / size), shares.argmax(dim=1)


def _find_shape(away: Tensor, ground: Tensor) -> tuple[Tensor, Tensor]:
    """Differences from the ground [F, 3, S, S] -> index of the shape's colour [F] and soft mask [F, S, S].

    The colour is the median of the interior, so a fade's mixture still gives a full mask.
    """
    contrast = away.square().sum(dim=1).sqrt()  # [F, S, S]; several times faster than norm
    strongest = contrast.flatten(1).quantile(STRONGEST, dim=1).view(-1, 1, 1)
    core = contrast > (CORE * strongest).clamp(min=CONTRAST)
    seen = (away + ground).masked_fill(~core.unsqueeze(1), math.nan).flatten(2)
    seen = seen.nanmedian(dim=2).values  # [F, 3], NaN where there is no shape
    nearest = torch.cdist(seen, torch.tensor(list(COLOURS.values()))).nan_to_num().argmin(dim=1)
    full = seen[:, :, None, None] - ground
    cover = (away * full).sum(dim=1) / full.square().sum(dim=1)
    return nearest, cover.nan_to_num().clamp(0, 1)


def _match(cover: Tensor) -> tuple[Tensor, Tensor]:
    """Soft masks [F, S, S] -> index of the nearest shape [F] and its place [F, 2].

    Nearest by squared error among all outlines, a few sizes of each, and all shifts of the torus.
    """
    size = cover.shape[-1]
    spectra, energy = _templates(size)
    overlap = torch.fft.irfft2(torch.fft.rfft2(cover).unsqueeze(1) * spectra, s=(size, size))  # [F, K, S, S]
    best = (2 * overlap.amax(dim=(2, 3)) - energy).argmax(dim=1)
    return best % len(SHAPES), _peak(overlap[torch.arange(len(best)), best])


def _peak(surface: Tensor) -> Tensor:
    """Where each surface [F, S, S] on the torus is highest, between the pixels -> [F, 2] (x, y) in [0, 1)."""
    size = surface.shape[-1]
    at = surface.flatten(1).argmax(dim=1)
    x, y = (at % size).unsqueeze(1), (at // size).unsqueeze(1)
    frame, near = torch.arange(len(at)).unsqueeze(1), torch.tensor([-1, 0, 1])
    beside = _vertex(surface[frame, y, (x + near) % size])
    above = _vertex(surface[frame, (y + near) % size, x])
    return (torch.cat((x, y), dim=1) + torch.stack((beside, above), dim=1)) / size % 1.0


def _vertex(values: Tensor) -> Tensor:
    """Where the parabola through values [F, 3] at -1, 0, 1 peaks [F]."""
    left, middle, right = values.unbind(1)
    return 0.5 * (left - right) / (left - 2 * middle + right).clamp(max=-1e-6)


@lru_cache(maxsize=4)
def _templates(size: int) -> tuple[Tensor, Tensor]:
    """Conjugate spectra [K, S, S/2 + 1] of the shapes about the corner, and their energies [K].

    All shapes of one size come before those of the next.
    """
    centre, masks = torch.full((len(SHAPES), 2), 0.5), []
    for scale in SCALES:
        scaled = 2 * round(size * scale / 2)
        mask = coverage(torch.eye(len(SHAPES)), centre, scaled)
        masks.append(torch.nn.functional.pad(mask, [(size - scaled) // 2] * 4))  # or cropped
    masks = torch.cat(masks).roll((-size // 2, -size // 2), dims=(1, 2))
    return torch.fft.rfft2(masks).conj(), masks.square().sum(dim=(1, 2))


def motion_windows(places: Tensor, window: int = WINDOW) -> list[int]:
    """Motion, as an index into MOTIONS, of every `window` frames of a path [F, 2], without overlap.

    A last window of fewer than SHORTEST_WINDOW frames is left out.
    """
    return [read_motion(part) for part in places.split(window) if len(part) >= min(window, SHORTEST_WINDOW)]


def read_motion(places: Tensor) -> int:
    """The one motion, as an index into MOTIONS, that best explains a path [F, 2]: 48 frames, at least 32.

    Velocities are compared with each motion's own at every phase; a few stray frames do not matter.
    """
    if len(places) < SHORTEST_WINDOW:
        raise ValueError(f"{len(places)} frames do not show a motion; give at least {SHORTEST_WINDOW}")
    velocity = _toward(places[:-LAG], places[LAG:]) / (LAG * SPEED)  # [F - LAG, 2]
    owners, profiles = _profiles(len(velocity))
    error = (velocity - profiles).norm(dim=2).clamp(max=STRAY).mean(dim=1)
    return int(owners[error.argmin()])


@lru_cache(maxsize=4)
def _profiles(steps: int) -> tuple[Tensor, Tensor]:
    """Velocity over LAG frames in units of SPEED of every motion and phase [P, steps, 2], and motions [P]."""
    phases = {"circles": CIRCLE_FRAMES, "bounces": BOUNCE_FRAMES}
    owners, profiles = [], []
    for index, motion in enumerate(MOTIONS):
        for phase in range(phases.get(motion, 1)):
            clock = phase + torch.arange(steps + LAG - 1)
            velocity = target_velocity([motion] * len(clock), clock) / SPEED
            profiles.append(velocity.unfold(0, LAG, 1).mean(dim=2))
            owners.append(index)
    return torch.tensor(owners), torch.stack(profiles)


def position_steps(places: Tensor) -> Tensor:
    """How far the shape moves from frame to frame, in 64ths of the frame: path [F, 2] -> [F - 1]."""
    return STEP_UNIT * _toward(places[:-1], places[1:]).norm(dim=1)


def _toward(start: Tensor, end: Tensor) -> Tensor:
    """The shortest way from one place to another on the torus, each [F, 2]."""
    return (end - start + 0.5) % 1.0 - 0.5
