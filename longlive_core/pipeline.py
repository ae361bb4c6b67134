"""Headless use: load the parts once, then prompts -> frames as one generator."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .config import ABSOLUTE_LATENT_FRAMES, MINI, Preset, WindowConfig
from .geometry import FRAME_RATE, frames_of_seconds, latent_size, num_blocks, num_frames
from .mini.loader import load_mini
from .model.attention import AUTO, check_attention
from .model.causal_wan import CausalWan
from .resume import Ending, VideoState
from .rollout.noise import SeededNoise
from .rollout.rollout import Block, Hook, Noise, rollout
from .rollout.sigmas import shifted_sigmas
from .schedule.cue import MAX_SECONDS
from .schedule.schedule import PromptSchedule
from .speed import PLAIN, Speed, made_ready, ready_decoder
from .steering.live import LiveControl
from .steering.script import EncodeText, script_of
from .vae.streaming import Decoder, StreamingDecoder

UNTIL_STOPPED = math.inf  # seconds of a video that a LiveControl stops, after MAX_SECONDS at the latest


@dataclass(frozen=True)
class Request:
    """What to make, `seconds` long or UNTIL_STOPPED. `window` None is the preset's; `positions` are auto
    (endless where a video outgrows absolute ones), absolute or endless.

    `past` are clean latents [1, C, T, H, W] of an earlier video, which this one continues; `cut_off` pixel
    frames at their end were not shown, so that this one begins with them. A `state` in place of both is
    continued bit for bit. Times and `seconds` count from where the earlier video ended.

    `steps` is how many of the denoising steps that the model was trained on each block takes: 4, 3 or 2; None
    is as many as the `state` was made with, else all that the preset has. Fewer are faster; first blocks
    suffer, and with 2 also what a switch keeps.
    """

    schedule: PromptSchedule
    seconds: float
    seed: int = 0
    width: int | None = None
    height: int | None = None
    window: WindowConfig | None = None
    positions: str = "auto"
    past: Tensor | None = None
    cut_off: int = 0
    state: VideoState | None = None
    steps: int | None = None


class Chunk(NamedTuple):
    """One block: its latents, and the frames [F, H, W, 3] in [0, 1] it adds to the video."""

    block: Block
    frames: Tensor

    def pictures(self) -> np.ndarray:
        """The frames as uint8 [F, H, W, 3], as a VideoWriter takes them."""
        pictures = (self.frames * 255).round_().byte().contiguous()
        copied = pictures.to("cpu", non_blocking=pictures.is_cuda)  # into pinned memory
        if pictures.is_cuda:
            torch.cuda.current_stream(pictures.device).synchronize()
        return copied.numpy()


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
    speed: Speed = field(default_factory=Speed)

    def plan(self, request: Request) -> "Plan":
        """Check a request and settle everything that follows from it; ValueError says what is wrong."""
        return Plan(self.preset, request)

    def run(
        self,
        request: Request,
        hook: Hook | None = None,
        live: LiveControl | None = None,
        ending: Ending | None = None,
    ) -> Iterator[Chunk]:
        """Yield chunk after chunk; all frames together are round(seconds * 16), the last chunk trimmed.

        A LiveControl steers it: what comes of its prompts, pauses and stop is described there. An Ending has
        the exact state of the video once all of it was yielded.
        """
        plan = self.plan(request)
        if plan.is_until_stopped and live is None:
            raise ValueError("a video without end needs a LiveControl that stops it; give the seconds")
        ready_decoder(self.decoder, self.speed, plan.block_shape, (hook or Hook()).on_note)
        decoder, due = self._decoder_for(plan)
        left = plan.frames
        for block in self.blocks(plan, hook, live=live, ending=ending):
            frames = decoder.push(block.latents, block.opens_scene)[0]
            if due is not None and len(due):
                frames = torch.cat((due, frames))
            frames, due = frames[:left], frames[left:].clone()  # a view of none would keep all in memory
            left -= len(frames)
            yield Chunk(block, frames.permute(0, 2, 3, 1))
            if live:
                live.out(block.index - plan.first_block, len(frames))
        if ending:
            size, made_with = (plan.width, plan.height), {"seed": request.seed, "steps": len(plan.sigmas)}
            ending.keep(plan.preset, size, block.index + 1, decoder, due, **made_with)

    def _decoder_for(self, plan: "Plan") -> tuple[StreamingDecoder, Tensor | None]:
        """A decoder that has seen the earlier video, and the frames [F, 3, H, W] cut off from it."""
        decoder, request = StreamingDecoder(self.decoder), plan.request
        if request.state:
            request.state.check_dtype(self.model.dtype)
            decoder.restore(request.state.decoder)
            return decoder, request.state.cut_off.to(self.model.device)
        if request.past is not None:
            return decoder, decoder.warm(request.past.to(self.model.device), plan.cut_off)[0]
        return decoder, None

    def blocks(
        self,
        plan: "Plan",
        hook: Hook | None = None,
        stop: Event | None = None,
        live: LiveControl | None = None,
        ending: Ending | None = None,
    ) -> Generator[Block, None, None]:
        """Only the latents of a plan. Once `stop` is set no further denoising step is made."""
        encode = self.encode_text
        if self.encode_ahead:
            encode = self.encode_ahead([segment.cue.prompt for segment in plan.timeline.segments])
        if live:
            script = live.script(
                plan.timeline,
                encode,
                plan.blocks,
                plan.block_latent_frames,
                is_until_stopped=plan.is_until_stopped,
                unwanted=stop,
                cut_off=plan.cut_off,
            )
        else:
            script = script_of(plan.timeline, encode, plan.block_latent_frames, plan.first_block)
        if plan.request.state:
            script.resume(plan.request.state.script)
        if ending:
            hook = ending.watching(script, hook)
        noise = until(stop, SeededNoise(plan.request.seed, plan.block_shape))
        tell = (hook or Hook()).on_note
        model = made_ready(self.model, self.speed, plan.window, plan.block_shape, tell)
        made = rollout(model, script, noise, plan.sigmas, plan.window, plan.blocks, plan.past, hook)
        return live.until_stopped(made) if live else made

    def stream(self, schedule: PromptSchedule | str, seconds: float, **request) -> Iterator[Tensor]:
        """Yield frames [F, H, W, 3] in [0, 1] as they are made; keywords are those of Request."""
        if isinstance(schedule, str):
            schedule = PromptSchedule.parse(schedule)
        for chunk in self.run(Request(schedule, seconds, **request)):
            yield chunk.frames


class Plan:
    """A checked request: how many frames and blocks, which window and sigmas, when each prompt begins."""

    def __init__(self, preset: Preset, request: Request):
        self.preset, self.request = preset, request
        state = request.state
        self.width = request.width or (state.width if state else preset.width)
        self.height = request.height or (state.height if state else preset.height)
        steps = state.steps if state and request.steps is None else request.steps
        self.sigmas = shifted_sigmas(preset.sigmas if steps is None else preset.sigmas.fewer(steps))
        latent_height, latent_width = latent_size(self.width, self.height)
        self.is_until_stopped = request.seconds == UNTIL_STOPPED
        seconds = MAX_SECONDS if self.is_until_stopped else request.seconds
        self.frames = checked_frames(seconds)
        window = request.window or (state.rollout.window if state else preset.window)
        window = checked_window(window, self.is_until_stopped)
        block = self.block_latent_frames = window.block_latent_frames
        self.block_shape = (1, preset.model.latent_channels, block, latent_height, latent_width)
        self.past = state.rollout if state else request.past
        self.first_block, self.cut_off = self._earlier()
        past_frames = num_frames(self.first_block * block) - self.cut_off
        self.blocks = range(self.first_block, num_blocks(past_frames + self.frames, block))
        if not self.blocks:
            raise ValueError(
                f"the last block of the earlier video holds {self.cut_off} frames beyond its end, so that "
                f"{self.frames} need no new block; choose more than {self.cut_off / FRAME_RATE} seconds"
            )
        self.window = replace(window, endless=self._is_endless(window))
        if state:
            state.check(preset, self.width, self.height, self.window)
        self.timeline = request.schedule.resolve(block, seconds, self.first_block, self.cut_off)

    def _earlier(self) -> tuple[int, int]:
        """Blocks of the earlier video, and the frames that its last one holds beyond its end."""
        request, block = self.request, self.block_latent_frames
        if request.state:
            return request.state.num_blocks, len(request.state.cut_off)
        if request.past is None:
            return 0, 0
        first_block = checked_past(request.past, self.block_shape) // block
        most = num_frames(first_block * block) - num_frames((first_block - 1) * block) - 1
        if not 0 <= request.cut_off <= most:
            raise ValueError(
                f"{request.cut_off} frames cannot be cut off from a last block; choose 0 to {most}"
            )
        return first_block, request.cut_off

    def _is_endless(self, window: WindowConfig) -> bool:
        """What `positions` comes to for a video of this length."""
        is_long = self.blocks.stop * window.block_latent_frames > ABSOLUTE_LATENT_FRAMES
        auto = self.request.state.rollout.window.endless if self.request.state else window.endless or is_long
        choices = {"auto": auto, "absolute": False, "endless": True}
        if self.request.positions not in choices:
            allowed = ", ".join(choices)
            raise ValueError(f"unknown positions {self.request.positions!r}; choose one of {allowed}")
        return choices[self.request.positions]

    def settings(self) -> dict[str, Any]:
        """What a video must carry to be made again."""
        return {
            "model": self.preset.name,
            "schedule": self.request.schedule.to_text(),
            "seconds": 0 if self.is_until_stopped else self.request.seconds,
            "seed": self.request.seed,
            "width": self.width,
            "height": self.height,
            "window": asdict(self.window),
            "steps": len(self.sigmas),
            "past_latent_frames": self.first_block * self.block_latent_frames,
        }


class Unwanted(Exception):
    """Raised in a rollout that goes on while nobody wants more of it."""


def until(stop: Event | None, noise: Noise) -> Noise:
    """The same noise as long as `stop` is not set; every denoising step asks for some."""

    def wanted(block: int, step: int) -> Tensor:
        if stop and stop.is_set():
            raise Unwanted
        return noise(block, step)

    return wanted


def checked_frames(seconds: float) -> int:
    """Pixel frames of a video of that length; ValueError if there can be no such video."""
    if not math.isfinite(seconds) or seconds <= 0 or seconds > MAX_SECONDS:
        raise ValueError(
            f"a video of {seconds} seconds is not possible; choose more than 0 and at most {MAX_SECONDS:g}"
        )
    return max(1, frames_of_seconds(seconds))


def checked_window(window: WindowConfig, is_until_stopped: bool) -> WindowConfig:
    """The window; ValueError if a video without end cannot have it."""
    if is_until_stopped and window.window_latent_frames is None:
        raise ValueError(
            "full attention (a window of 0) needs a video of known length; "
            "choose a window such as 12, or give the seconds"
        )
    return window


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


def load_pipeline(model: str = "mini", attention: str = AUTO, speed: str = PLAIN) -> Pipeline:
    """The pipeline of that name, on the CPU: `mini` is packaged."""
    if model != MINI.name:
        raise ValueError(f"unknown model {model!r}; this release runs {MINI.name!r}")
    check_attention(attention, torch.device("cpu"))
    mini = load_mini(attention=attention)
    return Pipeline(MINI, mini.transformer, mini.autoencoder, mini.encode_text, speed=Speed(speed))
