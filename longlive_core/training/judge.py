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

CHUNK = 128  # frames read at once, which bounds the memory
GROUND_STRIDE = 4  # pixels between the samples that choose the background
GROUND_TOLERANCE = 0.25  # a sample further off than this belongs to the shape, however far it is
CONTRAST = 0.15  # RGB distance from the background from which on a pixel may show a shape
CORE = 0.75  # share of the strongest contrast that the shape's interior has
STRONGEST = 0.98  # quantile of the contrast; the smallest shape covers a twelfth of the picture
LAG = 4  # frames over which a velocity is measured: jitter counts a quarter
STRAY = 1.5  # velocity error, in units of SPEED, beyond which a frame is just an outlier
WINDOW = 48
SHORTEST_WINDOW = 32


@dataclass
class Reading:
    """What every frame shows: indices [F] into COLOURS, SHAPES and BACKGROUNDS, place [F, 2] and mass [F].

    Places are (x, y) in [0, 1) on the torus; mass is the share of the picture that the shape covers.
    """

    colour: Tensor
    shape: Tensor
    background: Tensor
    place: Tensor
    mass: Tensor

    def names(self, frame: int) -> dict[str, str]:
        """Colour, shape and background of one frame in words."""
        return {name: VALUES[name][int(getattr(self, name)[frame])] for name in ("colour", "shape", "background")}


def read(frames: Tensor) -> Reading:
    """Read every frame [F, 3, S, S] in [0, 1] by itself."""
    parts = [_read(part) for part in frames.float().split(CHUNK)]
    return Reading(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Reading)))


def _read(frames: Tensor) -> Reading:
    background, ground = _find_ground(frames)
    colour, cover = _find_shape(frames - ground, ground)
    shape, place = _match(cover)
    return Reading(colour, shape, background, place, cover.mean(dim=(1, 2)))
