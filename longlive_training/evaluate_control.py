"""Measure how LongLive Mini follows silhouettes by its VACE layers, by the judge: rows of its model card."""

from collections.abc import Callable
from dataclasses import replace

import torch

from longlive_core.config import MINI, Policy
from longlive_core.geometry import num_frames
from longlive_core.mini.loader import Mini
from longlive_core.model.vace import ControlledWan

from .control import context_of
from .episodes import BLOCK
from .evaluate import Score, batches, held_out, make, score_video
from .judge import position_steps, read
from .world import MOTIONS, Attributes, Look, Motion, coverage, film

BLOCKS = 9
NEAR = 3.0  # px of 64


def control_figures(mini: Mini, count: int) -> dict[str, dict[str, float]]:
    """Silhouettes of a film in the middle of a motion, followed: `count` videos a row."""
    return {
        "control": followed_figures(mini, count, Attributes.prompt),
        "control, prompt of another motion": followed_figures(mini, count, prompt_of_another_motion),
        "control, silhouette of another shape": followed_figures(mini, count, Attributes.prompt, shift=1),
        "control, scale 0": followed_figures(mini, count, Attributes.prompt, scale=0.0),
    }


def prompt_of_another_motion(attributes: Attributes) -> str:
    """The prompt with the next of the motions."""
    motions = list(MOTIONS)
    motion = motions[(motions.index(attributes.motion) + 1) % len(motions)]
    return replace(attributes, motion=motion).prompt()


def followed_figures(
    mini: Mini, count: int, prompt_of: Callable[[Attributes], str], scale: float = 1.0, shift: int = 0
) -> dict[str, float]:
    """Look of the prompt and motion of the silhouettes; whose shape is the `shift`-th after the prompt's."""
    rng, score, places = torch.Generator().manual_seed(14), Score(), []
    for seeds, part in batches(held_out(count, seed=5)):
        _, path = film(part, Motion.anywhere(part, rng), num_frames(BLOCKS * BLOCK), MINI.width)
        shapes = Look.of(part).shape.roll(shift, dims=1).repeat_interleave(path.shape[1], dim=0)
        cover = coverage(shapes, path.flatten(0, 1), MINI.width).unflatten(0, path.shape[:2])
        context = context_of(cover[:, :, None].repeat(1, 1, 3, 1, 1), mini.autoencoder).split(BLOCK, dim=2)
        driven = ControlledWan(mini.transformer, lambda block, *_, parts=context: parts[block], scale)
        prompts = {0: ([prompt_of(a) for a in part], Policy.RECACHE)}
        made = make(mini._replace(transformer=driven), prompts, seeds, BLOCKS, MINI.window, range(BLOCKS))
        for shown, where, attributes in zip(made.frames, path, part, strict=True):
            score_video(score, shown, attributes)
            both = torch.stack((read(shown).place, where), dim=1).flatten(0, 1)
            places.append(position_steps(both)[::2])
    off = torch.cat(places)
    return {
        "videos": count,
        **score.shares(),
        "place_px_median": round(float(off.median()), 3),
        "within_3_px": round(float((off <= NEAR).float().mean()), 4),
    }
