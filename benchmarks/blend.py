"""`python -m benchmarks.blend`: which blend is the smoothest on Mini, and does it still arrive.

A blend of 3 s from one held-out scene to another, judged from pixels. Smoothness is the largest change from
frame to frame, from a block before the blend to a second after it: of pixels (mean absolute difference) and
of the shape's place, each as a multiple of the same video's median before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import report
from longlive_core.config import MINI, Policy
from longlive_core.geometry import FRAME_RATE, block_first_frame, latent_size
from longlive_core.mini.loader import Mini, load_mini
from longlive_core.rollout.noise import shifted_sigmas
from longlive_core.rollout.rollout import rollout
from longlive_core.schedule.cue import Cue
from longlive_core.steering.script import PromptScript
from longlive_core.vae.streaming import StreamingDecoder
from longlive_training.evaluate import BatchNoise, batches, held_out
from longlive_training.judge import position_steps, read
from longlive_training.world import VALUES, Attributes, random_change

VIDEOS = 24
BLOCK = MINI.window.block_latent_frames
SWITCH, BLOCKS, BLEND_SECONDS = 4, 11, 3.0
SEAM = block_first_frame(SWITCH, BLOCK)
END = SEAM + int(BLEND_SECONDS * FRAME_RATE)
ARRIVED = END + FRAME_RATE  # a second after the blend
PARALLEL = 0.9995  # cosine above which two directions have no arc between them


def spherical(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """The embedding along the arc between the directions of each row, the lengths mixed linearly.

    Rows without a direction of their own (padding is zero) and rows that are parallel go straight.
    """
    a, b = start.float(), end.float()
    lengths = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    cosine = (a * b).sum(-1, keepdim=True) / (lengths[0] * lengths[1]).clamp_min(1e-12)
    angle = cosine.clamp(-PARALLEL, PARALLEL).acos()
    direction = ((1 - weight) * angle).sin() * a / lengths[0].clamp_min(1e-12)
    direction = (direction + (weight * angle).sin() * b / lengths[1].clamp_min(1e-12)) / angle.sin()
    arc = direction * torch.lerp(*lengths, weight)
    return torch.where(cosine.abs() < PARALLEL, arc, torch.lerp(a, b, weight)).to(start.dtype)


Style = tuple[Callable[[Tensor, Tensor, float], Tensor], Policy]  # mix, on_the_way
STYLES: dict[str, Style | None] = {
    "at once (recache)": None,
    "linear, recache each block": (torch.lerp, Policy.RECACHE),
    "linear, recache at the last": (torch.lerp, Policy.KEEP),
    "spherical, recache each block": (spherical, Policy.RECACHE),
    "spherical, recache at the last": (spherical, Policy.KEEP),
}


@dataclass
class Scores:
    """One entry a video."""

    pixels: list[float]
    places: list[float]
    arrived: list[float]

    def figures(self) -> dict[str, float]:
        pixels, places = (torch.tensor(values) for values in (self.pixels, self.places))
        return {
            "largest_pixel_change_to_ordinary": round(float(pixels.median()), 2),
            "largest_step_to_ordinary": round(float(places.median()), 2),
            "largest_step_p95": round(float(places.quantile(0.95)), 2),
            "looks_right_1s_after": round(sum(self.arrived) / len(self.arrived), 3),
        }


@torch.inference_mode()
def make(mini: Mini, pairs: list[tuple[Attributes, Attributes]], seeds: range, style: Style | None) -> Tensor:
    """Videos [B, F, 3, H, W] that go from the first scene of each pair to the second."""
    prompts = {name: [pair[i].prompt() for pair in pairs] for i, name in enumerate(("before", "after"))}
    after = Cue(0, "after", Policy.BLEND, BLEND_SECONDS) if style else Cue(0, "after")
    cues = {0: Cue(0, "before"), SWITCH: after}
    script = PromptScript(cues.get, lambda name: mini.words(prompts[name]), BLOCK, *(style or ()))
    noise = BatchNoise(seeds, (1, MINI.model.latent_channels, BLOCK, *latent_size(MINI.width, MINI.height)))
    made = rollout(mini.transformer, script, noise, shifted_sigmas(MINI.sigmas), MINI.window, range(BLOCKS))
    decoder = StreamingDecoder(mini.autoencoder)
    return torch.cat([decoder.push(block.latents, block.opens_scene) for block in made], dim=1)


def score(frames: Tensor, after: Attributes, scores: Scores) -> None:
    """Judge one video [F, 3, H, W]."""
    reading = read(frames)
    changes = (frames[1:] - frames[:-1]).abs().mean(dim=(1, 2, 3))
    for values, found in ((changes, scores.pixels), (position_steps(reading.place), scores.places)):
        found.append(
            float(values[SEAM - 12 : ARRIVED].max() / values[9 : SEAM - 12].median().clamp_min(1e-4))
        )
    for name in ("colour", "shape", "background"):
        shown = getattr(reading, name)[ARRIVED]
        scores.arrived.append(float(shown == VALUES[name].index(getattr(after, name))))


def figures_of(mini: Mini, style: Style | None) -> dict[str, float]:
    rng = torch.Generator().manual_seed(7)
    pairs = [(before, random_change(rng, before, held_out=True)) for before in held_out(VIDEOS, seed=1)]
    scores = Scores([], [], [])
    for seeds, part in batches(pairs):
        for frames, (_, after) in zip(make(mini, part, seeds, style), part, strict=True):
            score(frames, after, scores)
    return scores.figures()


def main() -> None:
    """Print and keep all figures."""
    mini = load_mini()
    report("blend", {"videos": VIDEOS} | {name: figures_of(mini, style) for name, style in STYLES.items()})


if __name__ == "__main__":
    main()
