"""Train LongLive Mini's VACE layers: the transformer stays as it is, their hints make it follow control."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from longlive_core.config import MINI
from longlive_core.geometry import SPACE_STRIDE, num_frames
from longlive_core.mini.loader import WEIGHTS
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.vace import Vace
from longlive_core.vae.context import GRAY, ContextEncoder
from longlive_core.vae.tiny import TinyAutoencoder

from .episodes import (
    BLOCK,
    NUM_BLOCKS,
    Episodes,
    Kind,
    Pool,
    coin,
    first_prompt,
    object_cells,
    prompt_of_change,
    start_of,
)
from .forcing import attend_by_pass
from .runs import MuonAndAdam, Run, exponential_average
from .transformer import forcing_loss, frozen_autoencoder, load_generator, trapezoid
from .world import (
    MOTIONS,
    SHAPES,
    Attributes,
    Look,
    coverage,
    film,
    is_held_out,
    random_attributes,
    random_change,
)

CHANNELS = MINI.model.latent_channels
PLACES = (0, 2, 4)
BATCH = 6
PER_KIND = 6
REFRESH_STEPS = 6
KINDS = (Kind.NEAR, Kind.IMAGE, Kind.FOOTAGE)
ENDING_SHARE = 0.2  # of the silhouettes end before their video: from there on it is free
WARMUP = 20
EMA = 0.97


def fresh_vace(transformer: CausalWan) -> Vace:
    """VACE layers that begin as copies of the transformer's, with hints of zero."""
    vace = Vace(transformer.config, PLACES, attend_by_pass, attend_by_pass)
    for layer, place in zip(vace.layers, PLACES, strict=True):
        layer.load_state_dict(transformer.layers[place].state_dict(), strict=False)
        nn.init.zeros_(layer.after_proj.weight)
        nn.init.zeros_(layer.after_proj.bias)
    return vace


def train_control(
    folder: Path,
    weights: Path = WEIGHTS,
    steps: int = 200,
    size: int = MINI.width,
    seed: int = 0,
    lr: float = 2e-3,
) -> None:
    """Train (or resume) in `folder` on top of a packaged Mini; leaves `model.safetensors`."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = load_generator(weights).requires_grad_(False)
    model.transformer.vace = fresh_vace(model.transformer)
    trained = nn.ModuleDict({"vace": model.transformer.vace})
    optimizer = MuonAndAdam(trained, lr)
    run = Run(folder, trained, optimizer, exponential_average(trained, EMA), steps)
    rng.manual_seed(seed + run.step)
    autoencoder = frozen_autoencoder(weights)
    pool = Pool(autoencoder, PER_KIND, size, rng, folder / "episodes.pt", KINDS, shoot_followed)
    while not run.is_done:
        if run.step % REFRESH_STEPS == REFRESH_STEPS - 1:
            pool.refresh()
        optimizer.set_rate(lr * trapezoid(run.step, steps, WARMUP))
        loss, figures = forcing_loss(model, pool.pick(BATCH), rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        run.after_step(loss=float(loss.detach()), **figures)
    run.export(run.averaged())


@torch.no_grad()
def shoot_followed(
    autoencoder: TinyAutoencoder, count: int, switch: int, kind: Kind, size: int, rng: torch.Generator
) -> Episodes:
    """Episodes that follow silhouettes: where their prompts name another motion, the silhouettes count."""
    before = [random_attributes(rng) for _ in range(count)]
    after = [random_change(rng, a) for a in before]
    seam, length = num_frames(switch * BLOCK), num_frames(NUM_BLOCKS * BLOCK)
    frames, places = film(before, start_of(kind, before, rng), length, size, after, seam)
    shapes = torch.stack((Look.of(before).shape, Look.of(after).shape), dim=1)
    shown = silhouettes(shapes[:, (torch.arange(length) >= seam).long()], places, size, rng)
    latents = encoded(frames, autoencoder)
    context = context_of(shown, autoencoder)
    if num_given := {Kind.IMAGE: 1, Kind.FOOTAGE: BLOCK}.get(kind, 0):
        context[:, :, :num_given] = ContextEncoder(autoencoder).of_given(latents[:, :, :num_given])
    asked, then = ([astray(a, rng) for a in some] for some in (before, after))
    opened = [first_prompt(kind, a, rng) for a in asked]
    prompts = [
        (first, first, prompt_of_change(a, b, rng)) for first, a, b in zip(opened, asked, then, strict=True)
    ]
    return Episodes(latents.half(), object_cells(frames), prompts, switch, kind, context.half())


def silhouettes(shapes: Tensor, places: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """White on black [B, F, 3, size, size]: shapes [B, F, 4] at places [B, F, 2], half of them others.

    Half have hard edges, as a threshold makes them; some end on the way, in gray.
    """
    batch, length = places.shape[:2]
    is_other, is_hard, ends = torch.rand(3, batch, generator=rng)
    others = torch.eye(len(SHAPES))[torch.randint(len(SHAPES), (batch,), generator=rng)]
    shapes = torch.where((is_other < 0.5)[:, None, None], others[:, None], shapes)
    cover = coverage(shapes.flatten(0, 1), places.flatten(0, 1), size).unflatten(0, (batch, length))
    cover = torch.where((is_hard < 0.5)[:, None, None, None], (cover > 0.5).float(), cover)
    cover[torch.arange(length) >= (ends / ENDING_SHARE * length)[:, None]] = GRAY
    return cover[:, :, None].repeat(1, 1, 3, 1, 1)


def context_of(frames: Tensor, autoencoder: TinyAutoencoder) -> Tensor:
    """The context [B, 96, T, H, W] of control frames [B, 4T - 3, 3, 8H, 8W] without a mask."""
    first = ContextEncoder(autoencoder).push(frames[:1], torch.ones_like(frames[:1, :, :1]), opens_scene=True)
    kept, _, masks = first.expand(len(frames), -1, -1, -1, -1).split((CHANNELS, CHANNELS, SPACE_STRIDE**2), 1)
    return torch.cat((kept, encoded(frames, autoencoder), masks), dim=1)


def encoded(frames: Tensor, autoencoder: TinyAutoencoder) -> Tensor:
    """Latents of a batch of videos, few at a time."""
    return torch.cat([autoencoder.encode(part) for part in frames.split(4)])


def astray(attributes: Attributes, rng: torch.Generator) -> Attributes:
    """What a prompt says of a video: half of the time another motion."""
    motion = list(MOTIONS)[int(torch.randint(len(MOTIONS), (1,), generator=rng))]
    other = replace(attributes, motion=motion)
    return attributes if coin(rng) or is_held_out(other) else other
