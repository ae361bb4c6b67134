"""Streaming long tuning (paper section 3.3): roll out on one's own KV cache, supervise only the newest clip.

The paper's teacher is a larger model; here it is the world itself. Where the rollout's shape is, is read from
its pixels; the world goes on from there under the current prompt, and its film, encoded, is the target for
every denoising step of the block that the rollout made from the same past.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from longlive_core.config import MINI, Policy
from longlive_core.geometry import num_frames, tokens_per_frame
from longlive_core.model.cache import TextCache
from longlive_core.rollout.noise import TIMESTEP_SCALE, renoise, shifted_sigmas
from longlive_core.rollout.rollout import commit, denoise, recache
from longlive_core.rollout.scene import Scene
from longlive_core.vae.streaming import StreamingDecoder
from longlive_core.vae.tiny import TinyAutoencoder

from .episodes import BLOCK, Kind, Pool, object_cells, start_of, unnamed_prompt
from .judge import Reading, read
from .past import Past, Trajectory
from .runs import MuonAndAdam, Run, cosine, exponential_average
from .transformer import OBJECT_WEIGHT, PER_KIND, Generator, forcing_loss, frozen_autoencoder, load_generator
from .world import (
    BOUNCE_FRAMES,
    CIRCLE_FRAMES,
    FADE_FRAMES,
    VALUES,
    Attributes,
    Look,
    change_prompt,
    changed,
    film,
    is_held_out,
    random_attributes,
    random_change,
    render,
    target_velocity,
)

VIDEOS = 12
FORCING_BATCH = 3
LENGTHS = (6, 6, 12, 12, 40, 160)  # blocks of a rollout before it starts again
SEGMENT_BLOCKS = (3, 14)
SETTLED_FRAMES = 24  # after this long under one motion, its clock can be read from the path
IMAGE_SHARE = 0.6  # of the rollouts begin with a given first frame, and a prompt that names only its motion
LOOKS = {"colour", "shape", "background"}
STEPS_TRAINED = 2  # of the four denoising steps of a block
EMA = 0.995


class Stage:
    """A batch of videos under way, and the worlds that they ought to show."""

    def __init__(self, model: Generator, autoencoder: TinyAutoencoder, rng: torch.Generator, size: int):
        self.model, self.autoencoder, self.rng, self.size = model, autoencoder, rng, size
        self.sigmas = shifted_sigmas(MINI.sigmas)
        cells = size // 8
        self.shape = (VIDEOS, MINI.model.latent_channels, BLOCK, cells, cells)
        self._restart()

    def _restart(self) -> None:
        """New videos from the beginning."""
        self.scene = Scene(self.model.transformer, torch.empty(self.shape), MINI.window, 0)
        self.decoder = StreamingDecoder(self.autoencoder)
        self.before = self.attributes = [random_attributes(self.rng) for _ in range(VIDEOS)]
        is_image = torch.rand((), generator=self.rng) < IMAGE_SHARE
        kind = Kind.IMAGE if is_image else Kind.NEAR
        whole = [a.prompt() for a in self.attributes]
        self.prompts = [unnamed_prompt(prompt) for prompt in whole] if is_image else whole
        self.unnamed: list[set[str]] = [LOOKS if is_image else set() for _ in whole]
        self.motion = start_of(kind, self.attributes, self.rng)
        self.given = self._film_image() if is_image else None
        self.path = torch.empty(VIDEOS, 0, 2)
        self.settled = torch.zeros(VIDEOS)
        self.blocks_left = LENGTHS[self._randint(0, len(LENGTHS))]
        self.segment_left = self._randint(*SEGMENT_BLOCKS)

    def _film_image(self) -> Tensor:
        """The first block as the world has it, and its first frame as latents [B, C, 1, H, W]."""
        self.first_film = film(self.attributes, self.motion, num_frames(BLOCK), self.size)
        return self.autoencoder.encode(self.first_film[0][:, :1])

    def _randint(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=self.rng))

    def next_block(self) -> tuple[Tensor, Tensor]:
        """Make one more block of every video; returns (loss of the steps trained, share of pixels wrong)."""
        if self.blocks_left == 0:
            self._restart()
        is_switch = self.segment_left == 0
        text = self._text(is_switch)
        own, cleans, noises = self._make(text)
        target, error = self._target(own, is_switch)
        loss = self._loss(text, cleans, noises, target)
        commit(self.scene, self._constant(text), own)
        self.given = None
        self.blocks_left -= 1
        self.segment_left -= 1
        return loss, error

    def _text(self, is_switch: bool) -> TextCache:
        """The prompt's K and V with gradients; on a switch, the past is brought under it first."""
        self.before = self.attributes
        if is_switch:
            self.attributes = [random_change(self.rng, a) for a in self.before]
            full = torch.rand(VIDEOS, generator=self.rng) < 0.5
            changes = list(zip(self.before, self.attributes, full.tolist(), strict=True))
            self.prompts = [b.prompt() if whole else change_prompt(a, b) for a, b, whole in changes]
            self.unnamed = [set() if whole else LOOKS - set(changed(a, b)) for a, b, whole in changes]
            self.segment_left = self._randint(*SEGMENT_BLOCKS)
        text = self.model.transformer.encode_text(self.model.words(self.prompts))
        if is_switch:
            recache(self.scene, self._constant(text), Policy.RECACHE)
        return text

    @staticmethod
    def _constant(text: TextCache) -> TextCache:
        return TextCache([type(t)(t.keys.detach(), t.values.detach(), t.mask) for t in text.layers])

    def _make(self, text: TextCache) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The rollout's own next block: its latents, the estimates of all steps, the noise of all steps."""
        noises = [torch.randn(self.shape, generator=self.rng) for _ in self.sigmas]
        trajectory = Trajectory()
        own = denoise(
            *(self.scene, self._constant(text), lambda _, step: noises[step], self.sigmas, 0, trajectory),
            given=self.given,
        )
        return own, trajectory.cleans, noises

    @torch.no_grad()
    def _target(self, own: Tensor, is_switch: bool) -> tuple[Tensor, Tensor]:
        """What the block should have been [B, C, T, H, W], anchored in what the pixels show."""
        is_first = self.scene.end == 0
        shown = self.decoder.push(own, is_first)
        readings = [read(video) for video in shown]
        places = torch.stack([reading.place for reading in readings])
        turned = torch.tensor(
            [a.motion != b.motion for a, b in zip(self.before, self.attributes, strict=True)]
        )
        self.settled = torch.where(turned, torch.zeros_like(self.settled), self.settled)
        if not is_first:
            self._anchor()
        frames, path = self._film(shown.shape[1], is_switch)
        if is_first and self.given is None:
            frames, path = self._recentred(path, places)
        self.path = torch.cat((self.path, places), dim=1)[:, -2 * SETTLED_FRAMES :]
        self.settled += shown.shape[1]
        padded = frames if is_first else torch.cat((frames[:, :1], frames), dim=1)
        target = self.autoencoder.encode(padded)[:, :, -BLOCK:]
        self.cells = object_cells(padded)[:, -BLOCK:]
        self.attributes = [self._as_shown(row, reading) for row, reading in enumerate(readings)]
        return target, ((shown - frames).abs().amax(dim=2) > 0.2).float().mean()

    def _film(self, count: int, is_switch: bool) -> tuple[Tensor, Tensor]:
        """What the worlds show next, and the paths of their shapes."""
        if self.given is not None:
            return self.first_film
        seam = 0 if is_switch else -FADE_FRAMES
        return film(self.before, self.motion, count, self.size, self.attributes, seam)

    def _as_shown(self, row: int, reading: Reading) -> Attributes:
        """A look that the prompt leaves open and the video has lost is gone: nothing could bring it back."""
        shown = {
            name: VALUES[name][int(index[0])]
            for name in self.unnamed[row]
            if (index := getattr(reading, name)).unique().numel() == 1
        }
        attributes = replace(self.attributes[row], **shown)
        return self.attributes[row] if is_held_out(attributes) else attributes

    def _recentred(self, path: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The first block may begin anywhere near the centre: move the worlds to where the videos are."""
        offset = ((places - path + 0.5) % 1.0 - 0.5).median(dim=1, keepdim=True).values
        self.motion.place = (self.motion.place + offset[:, 0]) % 1.0
        path = (path + offset) % 1.0
        return draw(self.attributes, path, self.size), path

    def _anchor(self) -> None:
        """Put the worlds where the videos are, and set the clocks of settled motions by their paths."""
        self.motion.place = self.path[:, -1]
        for row, attributes in enumerate(self.attributes):
            if self.settled[row] >= SETTLED_FRAMES:
                clock = clock_of(self.path[row, -SETTLED_FRAMES:], attributes.motion)
                self.motion.clock[row] = clock + 1
                self.motion.velocity[row] = target_velocity([attributes.motion], torch.tensor([clock]))[0]

    def _loss(self, text: TextCache, cleans: list[Tensor], noises: list[Tensor], target: Tensor) -> Tensor:
        """Flow error towards the target of some denoising steps, taken from the rollout's own inputs."""
        model, cache = self.model.transformer, self.scene.cache
        past = Past.of(cache)
        weight = 1 + OBJECT_WEIGHT * self.cells.float().unsqueeze(1)
        num_given = 0 if self.given is None else self.given.shape[2]
        is_made, tokens = torch.arange(BLOCK) >= num_given, tokens_per_frame(*self.shape[-2:])
        losses = []
        for step in torch.randperm(len(self.sigmas), generator=self.rng)[:STEPS_TRAINED].tolist():
            sigma = self.sigmas[step]
            x = renoise(cleans[step - 1], noises[step], sigma) if step else noises[0]
            if num_given:
                x = torch.cat((self.given, x[:, :, num_given:]), dim=2)
            time = model.modulations(TIMESTEP_SCALE * sigma * is_made[None], tokens)
            flow = model(x, time, self.scene.rotations, past, text)
            error = ((x - target) / sigma - flow).square() * weight
            losses.append(error[:, :, num_given:].mean())
        return torch.stack(losses).mean()


def draw(attributes: list[Attributes], path: Tensor, size: int) -> Tensor:
    """Frames [B, F, 3, size, size] of unchanging attributes along a path [B, F, 2]."""
    look = Look.of(attributes)
    frames = [render(look, path[:, i], size) for i in range(path.shape[1])]
    return torch.stack(frames, dim=1)


def clock_of(path: Tensor, motion: str) -> float:
    """The clock at the last frame of a path [F, 2] that has followed `motion`: the best fit of its steps."""
    period = {"circles": CIRCLE_FRAMES, "bounces": BOUNCE_FRAMES}.get(motion)
    if period is None:
        return 0.0
    steps = (path.diff(dim=0) + 0.5) % 1.0 - 0.5
    ago = torch.arange(len(steps) - 1, -1, -1)
    clocks = torch.arange(period)[:, None] - ago
    ideal = target_velocity([motion] * clocks.numel(), clocks.flatten().float()).view(period, len(steps), 2)
    return float((ideal - steps).square().sum(dim=(1, 2)).argmin())


def tune(
    folder: Path,
    autoencoder: Path,
    transformer: Path,
    steps: int = 1000,
    size: int = MINI.width,
    seed: int = 0,
    lr: float = 3e-4,
) -> None:
    """Tune a teacher-forced transformer on its own rollouts, with a little teacher forcing in between."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = load_generator(transformer)
    optimizer = MuonAndAdam(model, lr)
    run = Run(folder, model, optimizer, exponential_average(model, EMA), steps)
    rng.manual_seed(seed + run.step)
    frozen = frozen_autoencoder(autoencoder)
    episodes = transformer.with_name("episodes.pt")
    pool, stage = Pool(frozen, PER_KIND, size, rng, episodes), Stage(model, frozen, rng, size)
    while not run.is_done:
        optimizer.set_rate(lr * cosine(run.step, steps, warmup=30))
        own, error = stage.next_block()
        forced, _ = forcing_loss(model, pool.pick(FORCING_BATCH), rng)
        optimizer.zero_grad()
        (own + 0.5 * forced).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.after_step(own=float(own.detach()), forced=float(forced.detach()), error=float(error))
    run.export(run.averaged())
