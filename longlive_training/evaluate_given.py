"""Measure what LongLive Mini does with given images and footage, by the judge: rows of its model card."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from longlive_core.config import MINI, Policy
from longlive_core.geometry import FRAME_RATE, num_blocks, num_frames
from longlive_core.mini.loader import Mini
from longlive_core.rollout.noise import shifted
from longlive_core.rollout.rollout import SourceNoise

from .episodes import BLOCK, Kind, start_of
from .evaluate import BatchNoise, Score, batches, held_out, make, score_video
from .judge import position_steps, read
from .world import VALUES, Attributes, film
from .world import random_change as change_at_random

IMAGE_SECONDS = 6
FOOTAGE_FRAMES = (9, 21, 45, 81, 153)
FOOTAGE_BLOCKS = 9
JUMP = 6.0  # px of 64
SEEN_FRAMES = 24  # in which an image must not jump
TRANSFORM_FRAMES = num_frames(9 * BLOCK)
STRENGTHS = (0.15, 0.25, 0.35, 0.5, 0.75)
SETTLE_FRAMES = 24


def given_figures(mini: Mini, count: int) -> dict[str, dict[str, float]]:
    """Images anywhere, footage continued, footage transformed: `count` videos a row."""
    figures = {
        "image, full prompt": image_figures(mini, count, Attributes.prompt),
        "image, prompt of the motion": image_figures(mini, count, lambda a: f"it {a.motion}"),
    }
    for length in FOOTAGE_FRAMES:
        figures[f"{length} frames of footage"] = footage_figures(mini, count, length, Attributes.prompt)
    figures["45 frames of footage, it goes on"] = footage_figures(mini, count, 45, lambda _: "it goes on")
    for strength in STRENGTHS:
        figures[f"transformed, strength {strength:g}"] = transform_figures(mini, count, strength)
    return figures


def psnr(shown: Tensor, expected: Tensor) -> float:
    """In dB, of all frames together."""
    return float(-10 * (shown - expected).square().mean().log10())


def image_figures(mini: Mini, count: int, prompt_of: Callable[[Attributes], str]) -> dict[str, float]:
    """Six seconds from an image with its shape anywhere."""
    rng, score, opening = torch.Generator().manual_seed(11), Score(), Score()
    blocks, first = num_blocks(IMAGE_SECONDS * FRAME_RATE, BLOCK), num_frames(BLOCK)
    largest, firsts = [], []
    for seeds, part in batches(held_out(count, seed=2)):
        images, _ = film(part, start_of(Kind.IMAGE, part, rng), 1, MINI.width)
        given = mini.autoencoder.encode(images)
        prompts = {0: ([prompt_of(a) for a in part], Policy.RECACHE)}
        made = make(mini, prompts, seeds, blocks, MINI.window, range(blocks), past=given)
        alone = mini.autoencoder.decode(given)[0]
        firsts.append((psnr(made.frames[:, :1], images), psnr(alone, images)))
        for frames, attributes in zip(made.frames, part, strict=True):
            reading = read(frames[:first])
            opening.add("block0_shape", reading.shape == VALUES["shape"].index(attributes.shape))
            score_video(score, frames[first:], attributes)
            steps = position_steps(read(frames[:SEEN_FRAMES]).place)
            score.add("without_jump", bool(steps.max() <= JUMP))
            largest.append(float(steps.max()))
    shown, alone = torch.tensor(firsts).mean(dim=0).tolist()
    return {
        "videos": count,
        **score.shares(),
        **opening.shares(),
        "largest_step_px_median": round(float(torch.tensor(largest).median()), 3),
        "first_frame_psnr": round(shown, 2),
        "autoencoder_alone_psnr": round(alone, 2),
    }


def footage_figures(
    mini: Mini, count: int, length: int, prompt_of: Callable[[Attributes], str]
) -> dict[str, float]:
    """Footage of `length` frames in the middle of a motion, continued, and its step at the seam."""
    rng, score, seams, ordinary = torch.Generator().manual_seed(12), Score(), [], []
    for seeds, part in batches(held_out(count, seed=3)):
        shown, _ = film(part, start_of(Kind.FOOTAGE, part, rng), length, MINI.width)
        past = mini.autoencoder.encode(shown)
        start = past.shape[2] // BLOCK
        prompts = {start: ([prompt_of(a) for a in part], Policy.RECACHE)}
        stop = start + FOOTAGE_BLOCKS
        made = make(mini, prompts, seeds, stop, MINI.window, range(start, stop), past=past)
        new = made.frames[:, num_frames(past.shape[2]) - num_frames(start * BLOCK) :]
        for old, frames, attributes in zip(shown, new, part, strict=True):
            score_video(score, frames, attributes)
            steps = position_steps(read(torch.cat((old[-1:], frames))).place)
            seams.append(steps[0])
            ordinary.append(steps[1:].median())
    seam, usual = torch.stack(seams), torch.stack(ordinary).median()
    return {
        "videos": count,
        **score.shares(),
        "seam_step_px_median": round(float(seam.median()), 3),
        "seam_to_ordinary": round(float(seam.median() / usual), 3),
        "seam_p95_to_ordinary": round(float(seam.quantile(0.95) / usual), 3),
    }


def begun_from(source: tuple[Tensor, ...], sigma: float, noise: BatchNoise) -> SourceNoise:
    """Blocks that begin from those of a source."""
    return SourceNoise(noise, lambda block, _: source[block], sigma)


def transform_figures(mini: Mini, count: int, strength: float) -> dict[str, float]:
    """A film transformed under a prompt that asks for another colour, background or shape."""
    rng, score, places = torch.Generator().manual_seed(13), Score(), []
    blocks, sigma = num_blocks(TRANSFORM_FRAMES, BLOCK), shifted(strength, MINI.sigmas.shift)
    for seeds, part in batches(held_out(count, seed=4)):
        frames, path = film(part, start_of(Kind.FOOTAGE, part, rng), TRANSFORM_FRAMES, MINI.width)
        source = mini.autoencoder.encode(frames).split(BLOCK, dim=2)
        asked = [replace(change_at_random(rng, a, held_out=True), motion=a.motion) for a in part]
        prompts = {0: ([a.prompt() for a in asked], Policy.RECACHE)}
        made = make(
            *(mini, prompts, seeds, blocks, MINI.window, range(blocks)),
            begin=partial(begun_from, source, sigma),
        )
        for shown, where, before, after in zip(made.frames, path, part, asked, strict=True):
            reading = read(shown)
            for name in ("colour", "shape", "background"):
                is_changed = getattr(before, name) != getattr(after, name)
                right = getattr(reading, name)[SETTLE_FRAMES:] == VALUES[name].index(getattr(after, name))
                score.add(f"{'changed' if is_changed else 'kept'}_{name}", right)
            places.append(position_steps(torch.stack((reading.place, where), dim=1).flatten(0, 1))[::2])
    return {
        "videos": count,
        **score.shares(),
        "place_px_median": round(float(torch.cat(places).median()), 3),
    }
