"""Headless use: load the parts once, then prompts -> frames as one generator."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .config import ABSOLUTE_LATENT_FRAMES, MINI, Preset, WindowConfig
from .geometry import frames_of_seconds, latent_size, num_blocks, num_frames
from .mini.loader import load_mini
from .model.attention import attention_backend
from .model.causal_wan import CausalWan
from .rollout.noise import SeededNoise
from .rollout.prompts import PromptSchedule, Timeline
from .rollout.rollout import Block, Hook, Script, Switch, rollout
from .rollout.sigmas import shifted_sigmas
from .vae.streaming import Decoder, StreamingDecoder

MAX_SECONDS = 24 * 3600.0
EncodeText = Callable[[str], Tensor]  # prompt -> [1, text tokens, text dim]


@dataclass(frozen=True)
class Request:
    """What to make. `window` None is the preset's; `positions` are auto (endless where a video outgrows
    absolute ones), absolute or endless.

    `past` are clean latents [1, C, T, H, W] of an earlier video, which this one continues; times and
    `seconds` count from where it ended.
    """

    schedule: PromptSchedule
    seconds: float
    seed: int = 0
    width: int | None = None
    height: int | None = None
    window: WindowConfig | None = None
    positions: str = "auto"
    past: Tensor | None = None


class Chunk(NamedTuple):
    """One block: its latents, and the frames [F, H, W, 3] in [0, 1] it adds to the video."""

    block: Block
    frames: Tensor

    def pictures(self) -> np.ndarray:
        """The frames as uint8 [F, H, W, 3], as a VideoWriter takes them."""
        return (self.frames * 255).round().byte().cpu().numpy()


@dataclass
class Pipeline:
    """A transformer, a decoder and a text encoder that belong together.

    `encode_ahead`, where given, encodes all prompts of a video before its rollout begins, so that a large
    encoder can leave memory.
    """

    preset: Preset
    model: CausalWan
    decoder: Decoder
    encode_text: EncodeText = field(repr=False)
    encode_ahead: Callable[[Iterable[str]], EncodeText] | None = field(default=None, repr=False)

    def plan(self, request: Request) -> "Plan":
        """Check a request and settle everything that follows from it; ValueError says what is wrong."""
        return Plan(self.preset, request)

    def run(self, request: Request, hook: Hook | None = None) -> Iterator[Chunk]:
        """Yield chunk after chunk; all frames together are round(seconds * 16), the last chunk trimmed."""
        plan = self.plan(request)
        decoder = StreamingDecoder(self.decoder)
        if request.past is not None:
            decoder.warm(request.past.to(self.model.device))
        left = plan.frames
        for block in self.blocks(plan, hook):
            frames = decoder.push(block.latents, block.opens_scene)[0, :left].permute(0, 2, 3, 1)
            left -= len(frames)
            yield Chunk(block, frames)

    def blocks(self, plan: "Plan", hook: Hook | None = None) -> Iterator[Block]:
        """Only the latents of a plan."""
        encode = self.encode_text
        if self.encode_ahead:
            encode = self.encode_ahead([segment.cue.prompt for segment in plan.timeline.segments])
        script = script_of(plan.timeline, encode, plan.first_block)
        noise = SeededNoise(plan.request.seed, plan.block_shape)
        sigmas = shifted_sigmas(self.preset.sigmas)
        return rollout(self.model, script, noise, sigmas, plan.window, plan.blocks, plan.request.past, hook)

    def stream(self, schedule: PromptSchedule | str, seconds: float, **request) -> Iterator[Tensor]:
        """Yield frames [F, H, W, 3] in [0, 1] as they are made; keywords are those of Request."""
        if isinstance(schedule, str):
            schedule = PromptSchedule.parse(schedule)
        for chunk in self.run(Request(schedule, seconds, **request)):
            yield chunk.frames


class Plan:
    """A checked request: how many frames and blocks, which window, when each prompt begins."""

    def __init__(self, preset: Preset, request: Request):
        self.preset, self.request = preset, request
        self.width, self.height = request.width or preset.width, request.height or preset.height
        latent_height, latent_width = latent_size(self.width, self.height)
        self.frames = checked_frames(request.seconds)
        window = request.window or preset.window
        block = window.block_latent_frames
        self.block_shape = (1, preset.model.latent_channels, block, latent_height, latent_width)
        past = 0 if request.past is None else checked_past(request.past, self.block_shape)
        self.first_block = past // block
        new_frames = self.frames + num_frames(past)
        self.blocks = range(self.first_block, num_blocks(new_frames, block))
        self.window = replace(window, endless=self._is_endless(window))
        self.timeline = request.schedule.resolve(block, request.seconds, self.first_block)

    def _is_endless(self, window: WindowConfig) -> bool:
        """What `positions` comes to for a video of this length."""
        is_long = self.blocks.stop * window.block_latent_frames > ABSOLUTE_LATENT_FRAMES
        choices = {"auto": window.endless or is_long, "absolute": False, "endless": True}
        if self.request.positions not in choices:
            allowed = ", ".join(choices)
            raise ValueError(f"unknown positions {self.request.positions!r}; choose one of {allowed}")
        return choices[self.request.positions]

    def settings(self) -> dict[str, Any]:
        """What a video must carry to be made again."""
        return {
            "model": self.preset.name,
            "schedule": self.request.schedule.to_text(),
            "seconds": self.request.seconds,
            "seed": self.request.seed,
            "width": self.width,
            "height": self.height,
            "window": asdict(self.window),
        }


def checked_frames(seconds: float) -> int:
    """Pixel frames of a video of that length; ValueError if there can be no such video."""
    if not math.isfinite(seconds) or seconds <= 0 or seconds > MAX_SECONDS:
        raise ValueError(
            f"a video of {seconds} seconds is not possible; choose more than 0 and at most {MAX_SECONDS:g}"
        )
    return max(1, frames_of_seconds(seconds))


def checked_past(past: Tensor, block_shape: tuple[int, ...]) -> int:
    """Latent frames of the video to continue; ValueError unless they are whole blocks of the same size."""
    batch, channels, block, height, width = block_shape
    expected = (batch, channels, past.shape[2] if past.ndim == 5 else 0, height, width)
    if past.shape != expected or not past.shape[2] or past.shape[2] % block:
        raise ValueError(
            f"latents of shape {list(past.shape)} cannot be continued: "
            f"expected [{batch}, {channels}, T, {height}, {width}] with T a multiple of {block}; "
            "use the latents and the size of the earlier video"
        )
    return past.shape[2]


def script_of(timeline: Timeline, encode_text: EncodeText, first_block: int = 0) -> Script:
    """A resolved schedule as the rollout's script; prompts are encoded when their block comes."""
    encode = lru_cache(maxsize=64)(encode_text)

    def script(block: int) -> Switch | None:
        segment = timeline.opens(block - first_block)
        return Switch(encode(segment.cue.prompt), segment.cue.policy) if segment else None

    return script


def load_pipeline(model: str = "mini", attention: str = "sdpa") -> Pipeline:
    """The pipeline of that name, on the CPU: `mini` is packaged."""
    if model != MINI.name:
        raise ValueError(f"unknown model {model!r}; this release runs {MINI.name!r}")
    if attention != "sdpa":
        attention_backend(attention)
        raise ValueError(f"attention {attention!r} needs a CUDA card and half precision; choose sdpa here")
    mini = load_mini(attention=attention)
    return Pipeline(MINI, mini.transformer, mini.autoencoder, mini.encode_text)
