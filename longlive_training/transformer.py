"""Train LongLive Mini's transformer and word encoder by teacher forcing on encoded films of the world."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from longlive_core.config import MINI
from longlive_core.geometry import tokens_per_frame
from longlive_core.model.cache import TextCache
from longlive_core.model.causal_wan import CausalWan
from longlive_core.rollout.noise import TIMESTEP_SCALE, shifted_sigmas
from longlive_core.text.words import WordEncoder
from longlive_core.vae.tiny import TinyAutoencoder

from .autoencoder import load_autoencoder
from .episodes import BLOCK, Episodes, Kind, Pool, coin, unnamed_prompt
from .forcing import (
    SEEN,
    Layout,
    SideBySide,
    attend_by_pass,
    hints_by_pass,
    plan,
    plan_unchanged,
    positions_of,
    recache_at,
    text_by_pass,
)
from .runs import MuonAndAdam, Run, exponential_average
from .world import vocabulary

BATCH = 8
NOISY = 8
PER_KIND = 90
REFRESH_STEPS = 100
OBJECT_WEIGHT = 3.0
CONTEXT_NOISE = 0.15
CONTEXT_SHARE = 0.7
SIGMA_SHIFT = 3.0
LIST_SHARE = 0.6  # of the noisy passes get one of the sigmas of inference
UNNAMED_BLOCKS = 6  # of a video whose look no prompt names
GIVEN_SHARE = 0.15  # of the batches of plain videos; an image is always given
MAX_GAP = 1000  # latent frames: 250 s
EMA = 0.995


class Generator(nn.Module):
    """What is trained together and shipped together: the transformer and the words it understands."""

    def __init__(self):
        super().__init__()
        config = MINI.model
        self.transformer = CausalWan(config, attend_by_pass, attend_by_pass)
        self.words = WordEncoder(vocabulary(), config.text_tokens, config.text_dim)


def frozen_autoencoder(path: Path) -> TinyAutoencoder:
    """The autoencoder of an earlier stage, or of a packaged Mini, as the transformer sees it."""
    return load_autoencoder(path).eval().requires_grad_(False)


def load_generator(path: Path) -> Generator:
    """The transformer and words of an earlier stage, or of a packaged Mini."""
    model = Generator()
    names = model.state_dict().keys()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items() if name in names})
    return model


def train_transformer(
    folder: Path,
    autoencoder: Path,
    steps: int = 3000,
    size: int = MINI.width,
    seed: int = 0,
    lr: float = 1.5e-3,
    start: Path | None = None,
    unnamed: float = 0.2,
) -> None:
    """Train (or resume) in `folder`, from fresh weights or those of `start`; leaves `model.safetensors`.

    `unnamed` is the share of the steps on short videos whose look is given and no prompt names.
    """
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = load_generator(start) if start else Generator()
    optimizer = MuonAndAdam(model, lr)
    run = Run(folder, model, optimizer, exponential_average(model, EMA), steps)
    rng.manual_seed(seed + run.step)  # a resumed run goes on with other films
    pool = Pool(frozen_autoencoder(autoencoder), PER_KIND, size, rng, folder / "episodes.pt")
    while not run.is_done:
        if run.step % REFRESH_STEPS == REFRESH_STEPS - 1:
            pool.refresh()
        optimizer.set_rate(lr * trapezoid(run.step, steps))
        episodes, share = pool.pick(BATCH), float(torch.rand((), generator=rng))
        is_unnamed = share < unnamed and episodes.kind is not Kind.FAR  # whose sink is another video's
        loss, figures = (unnamed_loss if is_unnamed else forcing_loss)(model, episodes, rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.after_step(loss=float(loss.detach()), **figures)
    run.export(run.averaged())


def trapezoid(step: int, steps: int, warmup: int = 100, hold: float = 0.6, floor: float = 0.03) -> float:
    """Learning-rate factor: warm-up, flat until `hold` of the run, then straight down to `floor`."""
    warmup = min(warmup, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    down = (step / steps - hold) / (1 - hold)
    return 1.0 if down < 0 else 1 - (1 - floor) * min(1.0, down)


def forcing_loss(
    model: Generator, episodes: Episodes, rng: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Flow error of the noisy passes of one batch, weighted towards the shape, and its parts to log."""
    recached = recache_at(episodes.switch, episodes.kind, rng)
    layout = plan(recached, episodes.switch, episodes.kind, rng, NOISY)
    listed = shifted_sigmas(MINI.sigmas)
    by_frame, blocks = flow_errors(model, episodes, layout, listed, num_given(episodes.kind, rng), rng)
    return by_frame.mean(), {"later": float(by_frame[blocks > 0].mean().detach())}


def unnamed_loss(
    model: Generator, episodes: Episodes, rng: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """The same where an image or some blocks are given and the prompt names nothing that is seen.

    At the highest noise levels, where only the past can tell what is there.
    """
    is_image, blocks = episodes.kind is Kind.IMAGE, min(UNNAMED_BLOCKS, episodes.switch)
    given = 0 if is_image else int(torch.randint(1, min(SEEN, blocks - 1) + 1, (1,), generator=rng))
    layout = plan_unchanged(blocks, given, rng, NOISY)
    firsts = [unnamed_prompt(first) for first, _, _ in episodes.prompts]
    if not is_image and coin(rng):
        firsts = ["it goes on"] * len(firsts)
    episodes = replace(episodes, prompts=[(first,) * 3 for first in firsts])
    listed, frames = shifted_sigmas(MINI.sigmas)[:2], num_given(episodes.kind, rng) if is_image else 0
    by_frame, _ = flow_errors(model, episodes, layout, listed, frames, rng)
    return by_frame.mean(), {"unnamed": float(by_frame.mean().detach())}


def flow_errors(
    model: Generator,
    episodes: Episodes,
    layout: Layout,
    listed: list[float],
    num_given: int,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Flow error of each latent frame that is asked for [N], and its block [N].

    Most noise levels are of those `listed`; `num_given` frames begin block 0.
    """
    clean = by_pass(episodes.latents.float(), layout, 2)
    cells = by_pass(episodes.cells, layout, 1).float().unsqueeze(1)
    given = given_frames(layout, num_given)
    sigmas = pass_sigmas(layout, clean.shape[0], listed, rng).masked_fill(given, 0.0)
    noise = torch.randn(clean.shape, generator=rng)
    level = sigmas[:, None, :, None, None]
    flow = predict(model, torch.lerp(clean, noise, level), sigmas, layout, episodes, _gap(episodes, rng))
    error = (flow - (noise - clean)).square() * (1 + OBJECT_WEIGHT * cells)
    noisy = torch.tensor([p.is_noisy for p in layout.passes]).repeat_interleave(BLOCK)
    asked = noisy & ~given
    by_frame = error.mean(dim=(0, 1, 3, 4))[asked]
    blocks = torch.tensor([p.block for p in layout.passes]).repeat_interleave(BLOCK)[asked]
    return by_frame, blocks


def num_given(kind: Kind, rng: torch.Generator) -> int:
    """How many clean latent frames block 0 begins with: of an image one, sometimes two."""
    share, both = torch.rand(2, generator=rng).tolist()
    if kind is not Kind.IMAGE and (kind is not Kind.NEAR or share >= GIVEN_SHARE):
        return 0
    return 2 if both < 0.2 else 1


def given_frames(layout: Layout, count: int) -> Tensor:
    """Which latent frames of all passes are given: the first `count` of every noisy pass of block 0."""
    is_first = torch.tensor([p.is_noisy and p.block == 0 for p in layout.passes])
    return (is_first[:, None] & (torch.arange(BLOCK) < count)).flatten()


def by_pass(x: Tensor, layout: Layout, axis: int) -> Tensor:
    """Latent frames of the episodes in the order of the passes."""
    starts = torch.tensor([p.block * BLOCK for p in layout.passes])
    return x.index_select(axis, (starts[:, None] + torch.arange(BLOCK)).flatten())


def pass_sigmas(layout: Layout, batch: int, listed: list[float], rng: torch.Generator) -> Tensor:
    """Noise level of every latent frame [B, T]: one a pass; clean passes get a little on most samples."""
    shape = (batch, len(layout.passes))
    from_list = torch.tensor(listed)[torch.randint(len(listed), shape, generator=rng)]
    uniform = torch.rand(shape, generator=rng)
    shifted = SIGMA_SHIFT * uniform / (1 + (SIGMA_SHIFT - 1) * uniform)
    noisy = torch.where(torch.rand(shape, generator=rng) < LIST_SHARE, from_list, shifted)
    context = CONTEXT_NOISE * torch.rand((batch, 1), generator=rng)
    context = torch.where(torch.rand((batch, 1), generator=rng) < CONTEXT_SHARE, context, 0.0)
    is_noisy = torch.tensor([p.is_noisy for p in layout.passes])
    return torch.where(is_noisy, noisy, context).repeat_interleave(BLOCK, dim=1)


def predict(
    model: Generator, latents: Tensor, sigmas: Tensor, layout: Layout, episodes: Episodes, gap: int
) -> Tensor:
    """Flow of all passes; clean passes get timestep 0 whatever their noise, as in inference.

    Episodes with context are followed by the transformer's VACE.
    """
    transformer = model.transformer
    is_noisy = torch.tensor([p.is_noisy for p in layout.passes]).repeat_interleave(BLOCK)
    prompts = [prompt for three in episodes.prompts for prompt in three]
    embeds, count = model.words(prompts), len(episodes.prompts)
    text = text_by_pass(transformer.encode_text(embeds), layout, count)
    rotations = transformer.rotations(positions_of(layout, gap), *latents.shape[-2:])
    caches = SideBySide([p.sees for p in layout.passes], len(transformer.layers))
    levels = TIMESTEP_SCALE * sigmas * is_noisy, tokens_per_frame(*latents.shape[-2:])
    hints = None
    if episodes.context is not None:
        vace, context = transformer.vace, by_pass(episodes.context.float(), layout, 2)
        own = text_by_pass(TextCache(transformer.text_of(vace.layers, embeds)), layout, count)
        times, _ = transformer.modulations_of(vace.layers, *levels)
        hints = hints_by_pass(vace, context, layout, own, times, rotations)
    return transformer(latents, transformer.modulations(*levels), rotations, caches, text, hints=hints)


def _gap(episodes: Episodes, rng: torch.Generator) -> int:
    """How far behind the sink a far episode goes on, in whole blocks; half of them soon, half anywhere."""
    if episodes.kind is not Kind.FAR:
        return 0
    high = MAX_GAP if torch.rand((), generator=rng) < 0.5 else MAX_GAP // 8
    return BLOCK * int(torch.randint(1, high // BLOCK, (1,), generator=rng))
