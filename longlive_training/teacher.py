"""Train Mini's teacher: a bidirectional Mini that knows clips of 21 latent frames, as Wan's own models do.

The same transformer without a causal mask: every latent frame of a clip sees all of it, at one noise level.
Flow matching on films of the world, of the kinds that a clip of a long video may be. It is for `distil-mini`,
whose student then needs no film.
"""

from dataclasses import dataclass
from enum import StrEnum, auto
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from longlive_core.config import MINI
from longlive_core.geometry import num_frames
from longlive_core.mini.loader import WEIGHTS
from longlive_core.vae.tiny import TinyAutoencoder

from .distil.draws import LEVELS
from .distil.recipe import LONG
from .distil.scores import noised, shifted_timesteps, whole_flow
from .episodes import object_cells, prompt_of_change
from .runs import MuonAndAdam, Run, exponential_average
from .transformer import EMA, OBJECT_WEIGHT, Generator, frozen_autoencoder, load_generator, trapezoid
from .world import Motion, film, random_attributes, random_change

CLIP = LONG.clip
BATCH = 8
PER_KIND = 120
REFRESH_STEPS = 100
OVERLAP = CLIP - LONG.min_new  # latent frames of a clip that were judged before


class Kind(StrEnum):
    """Where in a video a clip is: at its beginning, in its middle, at a change, after one.

    At a change the clip begins with the frames before it; after one its prompt may name only what changed.
    """

    OPENING = auto()
    MIDDLE = auto()
    TURNING = auto()
    TURNED = auto()


@dataclass
class Clips:
    """Latents [B, C, 21, H, W], object cells [B, 21, H, W], and a prompt each."""

    latents: Tensor
    cells: Tensor
    prompts: list[str]

    def pick(self, count: int, rng: torch.Generator) -> "Clips":
        """A random batch of these."""
        rows = torch.randint(len(self.prompts), (count,), generator=rng)
        return Clips(self.latents[rows], self.cells[rows], [self.prompts[row] for row in rows.tolist()])


@torch.no_grad()
def shoot(autoencoder: TinyAutoencoder, count: int, kind: Kind, size: int, rng: torch.Generator) -> Clips:
    """Film and encode `count` clips, each as a video of its own: its first latent is one frame."""
    before = [random_attributes(rng) for _ in range(count)]
    after = [random_change(rng, attributes) for attributes in before]
    shown = after if kind is Kind.TURNED else before
    motion = Motion.at_start(count, rng) if kind is Kind.OPENING else Motion.anywhere(shown, rng)
    then = after if kind is Kind.TURNING else None
    frames, _ = film(shown, motion, num_frames(CLIP), size, then, num_frames(OVERLAP))
    prompts = [attributes.prompt() for attributes in before]
    if kind in (Kind.TURNING, Kind.TURNED):
        prompts = [prompt_of_change(old, new, rng) for old, new in zip(before, after, strict=True)]
    latents = torch.cat([autoencoder.encode(part) for part in frames.split(4)])
    return Clips(latents.half(), object_cells(frames), prompts)


def teacher_loss(model: Generator, clips: Clips, rng: torch.Generator) -> Tensor:
    """Flow error at the noise levels of tuning, weighted towards the shape."""
    clean = clips.latents.float()
    levels = torch.randint(LEVELS, (len(clean),), generator=rng)
    timesteps = shifted_timesteps(levels, LONG.sigmas, LONG.timesteps)
    noise = torch.randn(clean.shape, generator=rng)
    flow = whole_flow(
        model.transformer, noised(clean, noise, timesteps), timesteps, model.words(clips.prompts)
    )
    weight = 1 + OBJECT_WEIGHT * clips.cells.float().unsqueeze(1)
    return ((flow - (noise - clean)).square() * weight).mean()


def train_teacher(
    folder: Path,
    autoencoder: Path = WEIGHTS,
    start: Path = WEIGHTS,
    steps: int = 4000,
    size: int = MINI.width,
    seed: int = 0,
    lr: float = 1e-3,
) -> None:
    """Train (or resume) in `folder` from the weights of a causal Mini; leaves `model.safetensors`.

    The words stay as they are: student, critic and teacher get the same embeddings.
    """
    torch.manual_seed(seed)
    model = load_generator(start)
    model.words.requires_grad_(False)
    optimizer = MuonAndAdam(model, lr)
    run = Run(folder, model, optimizer, exponential_average(model, EMA), steps)
    rng = torch.Generator().manual_seed(seed + run.step)  # a resumed run goes on with other films
    encoder, kinds = frozen_autoencoder(autoencoder), list(Kind)
    if not run.is_done:
        filmed = tqdm(kinds, desc="clips", mininterval=10)
        clips = {kind: shoot(encoder, PER_KIND, kind, size, rng) for kind in filmed}
    while not run.is_done:
        kind = kinds[int(torch.randint(len(kinds), (), generator=rng))]
        if run.step % REFRESH_STEPS == REFRESH_STEPS - 1:
            clips[kind] = shoot(encoder, PER_KIND, kind, size, rng)
        optimizer.set_rate(lr * trapezoid(run.step, steps))
        loss = teacher_loss(model, clips[kind].pick(BATCH, rng), rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.after_step(loss=float(loss.detach()))
    run.export(run.averaged())


@torch.no_grad()
def sampled(model: Generator, prompts: list[str], noise: Tensor, steps: int = 16) -> Tensor:
    """A clip [B, C, T, H, W] of each prompt from noise, by so many steps of Euler's method."""
    levels = torch.linspace(LEVELS, 0, steps + 1)
    timesteps = shifted_timesteps(levels, LONG.sigmas, (0, LEVELS))
    x, embeds = noise, model.words(prompts)
    for now, later in pairwise(timesteps):
        flow = whole_flow(model.transformer, x, now.expand(len(x)), embeds)
        x = x + (later - now) / LEVELS * flow
    return x
