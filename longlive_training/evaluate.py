"""Measure LongLive Mini with the judge on held-out combinations: prompts and switches.

Nothing here asks the model what it made, only its pixels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor
from tqdm import tqdm

from longlive_core.config import MINI, Policy, WindowConfig
from longlive_core.geometry import FRAME_RATE, block_first_frame, latent_size, num_blocks
from longlive_core.mini.loader import Mini
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.rollout.rollout import Noise, SourceNoise, Switch, rollout
from longlive_core.vae.streaming import WARM_LATENT_FRAMES, StreamingDecoder

from .autoencoder import make_clips, object_mask
from .judge import Reading, motion_windows, position_steps, read, read_motion
from .world import MOTIONS, SHAPES, VALUES, Attributes, change_prompt, changed, combinations, is_held_out
from .world import random_change as change_at_random

BATCH = 16
SHORT_SECONDS = 10
LONG_SECONDS = 240
SWITCH_SECONDS = 5.0
SWITCH_TOTAL = 11.0
WINDOW_FRAMES = 48
SETTLE_FRAMES = 24  # 1.5 s
COLOUR_FRAME = 8
ADHERENCE_FRAMES = (8, 16, 24, 48, 88)  # 0.5 s to 5.5 s after a switch


@dataclass
class Made:
    """Videos of one batch: the frames asked for [B, F, 3, H, W], and the std of the latents by block."""

    frames: Tensor
    latent_std: list[float]


class BatchNoise:
    """Every video of a batch has a seed of its own, whatever batch it is in."""

    def __init__(self, seeds: range, shape: tuple[int, ...]):
        self._noises = [SeededNoise(seed, shape) for seed in seeds]

    def __call__(self, block: int, step: int) -> Tensor:
        return torch.cat([noise(block, step) for noise in self._noises])


@torch.inference_mode()
def make(
    mini: Mini,
    prompts: dict[int, tuple[list[str], Policy]],
    seeds: range,
    blocks: int,
    window: WindowConfig,
    keep_blocks: range,
    past: Tensor | None = None,
    begin: Callable[[BatchNoise], Noise | SourceNoise] = lambda noise: noise,
) -> Made:
    """Roll out one video a seed, changing prompts at the given blocks; frames of `keep_blocks` only.

    `past` are clean latents of any length that it goes on from; `begin` has the noise begin from a source.
    """
    cells = latent_size(MINI.width, MINI.height)
    shape = (1, MINI.model.latent_channels, window.block_latent_frames, *cells)

    def script(block: int) -> Switch | None:
        return Switch(mini.words(prompts[block][0]), prompts[block][1]) if block in prompts else None

    decoder, frames, stds = StreamingDecoder(mini.autoencoder), [], []
    warm = WARM_LATENT_FRAMES // window.block_latent_frames
    noise = begin(BatchNoise(seeds, shape))
    sigmas = shifted_sigmas(MINI.sigmas)
    first = 0 if past is None else past.shape[2] // window.block_latent_frames
    if first:
        decoder.warm(past[:, :, : first * window.block_latent_frames])
    for block in rollout(mini.transformer, script, noise, sigmas, window, range(first, blocks), past):
        stds.append(float(block.latents.std()))
        if block.index >= keep_blocks.start - warm:
            shown = decoder.push(block.latents, block.opens_scene)
            if block.index in keep_blocks:
                frames.append(shown)
    return Made(torch.cat(frames, dim=1), stds)


def batches(items: list, size: int = BATCH) -> Iterator[tuple[range, list]]:
    """(seeds, items) of every batch."""
    for start in tqdm(range(0, len(items), size), mininterval=10):
        part = items[start : start + size]
        yield range(start, start + len(part)), part


def held_out(count: int, seed: int = 0) -> list[Attributes]:
    """Held-out combinations in a shuffled order, again from the beginning when they run out."""
    pool = [c for c in combinations() if is_held_out(c)]
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
    return [pool[order[i % len(pool)]] for i in range(count)]


def autoencoder_figures(mini: Mini) -> dict[str, float]:
    """PSNR in dB over everything, and inside the object, on fresh films."""
    frames = make_clips(100, MINI.width, torch.Generator().manual_seed(99), 33).float() / 255
    with torch.no_grad():
        decoded = torch.cat(
            [mini.autoencoder.decode(mini.autoencoder.encode(p))[0] for p in frames.split(20)]
        )
    error, mask = (decoded - frames).square(), object_mask(frames)
    inside = (error * mask).sum() / (3 * mask.sum())
    return {"psnr": float(-10 * error.mean().log10()), "psnr_object": float(-10 * inside.log10())}


class Score:
    """Right and asked, by name; a score is the share that was right."""

    def __init__(self):
        self.right: dict[str, float] = {}
        self.asked: dict[str, int] = {}

    def add(self, name: str, right: Tensor | list[bool] | bool) -> None:
        """Count one or many answers."""
        answers = torch.as_tensor(right, dtype=torch.float32).flatten()
        self.right[name] = self.right.get(name, 0.0) + float(answers.sum())
        self.asked[name] = self.asked.get(name, 0) + len(answers)

    def shares(self) -> dict[str, float]:
        """Share right of every name."""
        return {
            name: round(self.right[name] / self.asked[name], 4) for name in self.right if self.asked[name]
        }


def score_video(score: Score, frames: Tensor, attributes: Attributes) -> None:
    """Look of every frame [F, 3, H, W] and motion of every 48-frame window."""
    reading = read(frames)
    for name in ("colour", "shape", "background"):
        score.add(name, getattr(reading, name) == VALUES[name].index(getattr(attributes, name)))
    motions = motion_windows(reading.place, WINDOW_FRAMES)
    score.add("motion", [list(MOTIONS)[m] == attributes.motion for m in motions])


def single_prompt_figures(mini: Mini, count: int, seconds: int, window: WindowConfig = MINI.window) -> dict:
    """Videos of one prompt: block 0 (short ones only), then either all the rest or the last ten seconds."""
    block = window.block_latent_frames
    blocks = num_blocks(seconds * FRAME_RATE, block)
    last = num_blocks(SHORT_SECONDS * FRAME_RATE, block)
    score, opening, ratios = Score(), Score(), []
    for seeds, part in batches(held_out(count)):
        prompts = {0: ([a.prompt() for a in part], Policy.RECACHE)}
        made = make(mini, prompts, seeds, blocks, window, range(blocks - last, blocks))
        first = block_first_frame(1, block) if blocks == last else 0
        for frames, attributes in zip(made.frames, part, strict=True):
            if first:
                opened = read(frames[:first]).shape == SHAPES.index(attributes.shape)
                opening.add("block0_shape", opened)
            score_video(score, frames[first:], attributes)
        stds = made.latent_std
        ratios.append(mean(stds[-last:]) / mean(stds[1 : 1 + last]))
    drift = {"latent_std_last_to_first": round(mean(ratios), 4)} if blocks > last else {}
    return {"videos": count, **score.shares(), **opening.shares(), **drift}


def switch_figures(mini: Mini, count: int, policy: Policy, window: WindowConfig = MINI.window) -> dict:
    """What changes at a switch after 5 s: when it is there, and how far the shape jumps at the seam."""
    rng = torch.Generator().manual_seed(7)
    before = held_out(count, seed=1)
    pairs = [(a, change_at_random(rng, a, held_out=True)) for a in before]
    block = window.block_latent_frames
    switch = num_blocks(int(SWITCH_SECONDS * FRAME_RATE), block)
    blocks = num_blocks(int(SWITCH_TOTAL * FRAME_RATE), block)
    seam = block_first_frame(switch, block)
    score, seams, ordinary = Score(), [], []
    for seeds, part in batches(pairs):
        prompts = {
            0: ([a.prompt() for a, _ in part], Policy.RECACHE),
            switch: ([b.prompt() if i % 2 else change_prompt(a, b) for i, (a, b) in enumerate(part)], policy),
        }
        made = make(mini, prompts, seeds, blocks, window, range(blocks))
        for frames, (a, b) in zip(made.frames, part, strict=True):
            steps = score_switch(score, frames, a, b, seam)
            seams.append(steps[seam - 1])
            ordinary.append(steps[9 : seam - 2].median())
    ratio = torch.stack(seams).median() / torch.stack(ordinary).clamp_min(0.1).median()
    worst = torch.stack(seams).quantile(0.95) / torch.stack(ordinary).median()
    return {
        "videos": count,
        **score.shares(),
        "seam_step_px_median": round(float(torch.stack(seams).median()), 3),
        "ordinary_step_px_median": round(float(torch.stack(ordinary).median()), 3),
        "seam_to_ordinary": round(float(ratio), 3),
        "seam_p95_to_ordinary": round(float(worst), 3),
    }


def score_switch(score: Score, frames: Tensor, before: Attributes, after: Attributes, seam: int) -> Tensor:
    """Count what changed and what stayed; returns the position steps of the video."""
    reading, later = read(frames), seam + SETTLE_FRAMES
    score_adherence(score, reading, after, seam)
    for name in changed(before, after):
        if name == "motion":
            motion = read_motion(reading.place[later : later + WINDOW_FRAMES])
            score.add("changed_motion_in_1.5s", list(MOTIONS)[motion] == after.motion)
            score.add("changed_all_in_1.5s", list(MOTIONS)[motion] == after.motion)
            continue
        shown = getattr(reading, name) == VALUES[name].index(getattr(after, name))
        score.add(f"changed_{name}_in_1.5s", shown[later])
        score.add("changed_all_in_1.5s", shown[later])
        score.add(f"changed_{name}_after_1.5s", shown[later:])
        if name == "colour":
            for frame in (4, 6, COLOUR_FRAME):
                score.add(f"changed_colour_frame_{frame}", shown[seam + frame - 1])
    for name in [n for n in VALUES if n != "motion" and n not in changed(before, after)]:
        kept = getattr(reading, name)[later:] == VALUES[name].index(getattr(after, name))
        score.add(f"kept_{name}", kept)
    return position_steps(reading.place)


def score_adherence(score: Score, reading: Reading, after: Attributes, seam: int) -> None:
    """Whether colour, shape and background are those of the new prompt, some times after the switch."""
    for frame in ADHERENCE_FRAMES:
        for name in ("colour", "shape", "background"):
            right = getattr(reading, name)[seam + frame - 1] == VALUES[name].index(getattr(after, name))
            score.add(f"look_right_after_{frame / FRAME_RATE:g}s", right)
