"""Train LongLive Mini's autoencoder on films of the procedural world."""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from longlive_core.config import MINI, TinyAutoencoderConfig
from longlive_core.vae.tiny import TinyAutoencoder

from .runs import Run, cosine, exponential_average
from .world import Motion, film, random_attributes, random_change

CLIP_FRAMES = 9
POOL_CLIPS = 2500
BATCH = 4
OBJECT_WEIGHT = 3.0
SQUARE_WEIGHT = 10.0  # of the squared error, next to the absolute one: PSNR counts squares
EDGE_WEIGHT = 0.5
LATENT_NOISE = 0.05
LATENT_PENALTY = 3e-3
LATENT_GAIN = 4.0  # louder first latents, or the noise drowns them and the encoder overshoots
EMA = 0.998


def make_clips(count: int, size: int, rng: torch.Generator, frames: int = CLIP_FRAMES) -> Tensor:
    """Random clips, half of them with a change on the way -> uint8 [count, frames, 3, size, size]."""
    clips = []
    for _ in range(0, count, 50):
        before = [random_attributes(rng) for _ in range(min(50, count))]
        after = [random_change(rng, a) for a in before]
        motion = Motion.anywhere(before, rng)
        switch = int(torch.randint(-6, 2 * frames, (1,), generator=rng))
        clips.append((film(before, motion, frames, size, after, switch)[0] * 255).round().byte())
    return torch.cat(clips)


def reconstruction_loss(decoded: Tensor, frames: Tensor, object_mask: Tensor) -> Tensor:
    """Weighted L1 + MSE, plus L1 of the differences between neighbouring pixels, which keeps corners."""
    error = decoded - frames
    weight = 1 + OBJECT_WEIGHT * object_mask
    plain = ((error.abs() + SQUARE_WEIGHT * error.square()) * weight).mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return plain + EDGE_WEIGHT * edges


def object_mask(frames: Tensor) -> Tensor:
    """Where the shape is, read from how far a pixel is from its row's median -> [B, F, 1, H, W] of 0 / 1."""
    ground = frames.median(dim=-1, keepdim=True).values
    return ((frames - ground).abs().amax(dim=2, keepdim=True) > 0.1).float()


def fresh_autoencoder() -> TinyAutoencoder:
    """Random weights whose latents are loud from the start."""
    model = TinyAutoencoder(MINI.autoencoder or TinyAutoencoderConfig())
    with torch.no_grad():
        model.encoder.net[-1].weight.mul_(LATENT_GAIN)
    return model.to(memory_format=torch.channels_last)


def load_autoencoder(path: Path) -> TinyAutoencoder:
    """The autoencoder of an earlier run, or of a packaged Mini."""
    state = {name.removeprefix("autoencoder."): t.float() for name, t in load_file(path).items()}
    model = TinyAutoencoder(MINI.autoencoder or TinyAutoencoderConfig())
    names = model.state_dict().keys()
    model.load_state_dict({name: tensor for name, tensor in state.items() if name in names})
    return model.to(memory_format=torch.channels_last)


def train_autoencoder(
    folder: Path,
    steps: int = 4000,
    size: int = MINI.width,
    seed: int = 0,
    lr: float = 1.2e-3,
    start: Path | None = None,
) -> None:
    """Train (or resume) in `folder`, leaving `last.pt` and the averaged weights in `model.safetensors`.

    From the weights of `start`, only the decoder goes on: its transformer must find its latents unchanged.
    """
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = load_autoencoder(start) if start else fresh_autoencoder()
    model.encoder.requires_grad_(not start)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run(folder, model, optimizer, exponential_average(model, EMA), steps)
    pool = make_clips(POOL_CLIPS, size, rng)
    while not run.is_done:
        if run.step % 500 == 499:  # a fresh tenth of the pool now and then
            pool[torch.randperm(len(pool), generator=rng)[: len(pool) // 10]] = make_clips(
                len(pool) // 10, size, rng
            )
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine(run.step, steps, warmup=100)
        picks = torch.randint(len(pool), (BATCH,), generator=rng)
        shift = int(torch.randint(size, (1,), generator=rng))
        frames = pool[picks].roll(shift, dims=-1).float() / 255
        latents = model.encoder(frames)
        noisy = latents + LATENT_NOISE * torch.randn_like(latents)
        decoded, _ = model.decoder(noisy)
        loss = reconstruction_loss(decoded, frames, object_mask(frames))
        loss = loss + LATENT_PENALTY * latents.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        run.after_step(loss=float(loss.detach()), psnr=psnr(decoded.detach(), frames))
    run.export(run.averaged() if start else measured(run.averaged(), size))


@torch.no_grad()
def measured(model: TinyAutoencoder, size: int) -> TinyAutoencoder:
    """The model with the mean and std of its latents over fresh films."""
    frames = make_clips(200, size, torch.Generator().manual_seed(1)).float() / 255
    latents = torch.cat([model.encoder(part) for part in frames.split(20)])
    model.mean.copy_(latents.mean(dim=(0, 2, 3, 4)))
    model.std.copy_(latents.std(dim=(0, 2, 3, 4)))
    return model


def psnr(decoded: Tensor, frames: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of frames in [0, 1]."""
    return -10 * math.log10(float((decoded.clamp(0, 1) - frames).square().mean()) + 1e-12)
