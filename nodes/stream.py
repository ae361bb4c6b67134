"""LongLiveStream: model, schedule and decoder -> a video file, written while it is made, and its latents."""

import secrets
import time
from dataclasses import replace

import torch
from comfy_api.latest import io
from torch import Tensor

from ..longlive_core.config import MINI
from ..longlive_core.geometry import FRAME_RATE, PIXEL_MULTIPLE
from ..longlive_core.pipeline import MAX_SECONDS, Chunk, Pipeline, Plan, Request
from ..longlive_core.rollout.rollout import Hook
from ..longlive_core.video import VideoWriter
from . import host
from .adapters import decoder_of
from .io_types import (
    CATEGORY,
    SCENES_KEY,
    EncodedSchedule,
    ModelType,
    ScheduleType,
    StreamModel,
    WindowChoice,
    WindowType,
)

PREFIX = "longlive/stream"
MAX_PIXELS = 8192


class LongLiveStream(io.ComfyNode):
    """The one node that makes video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveStream",
            display_name="LongLive: Stream",
            category=CATEGORY,
            description=(
                "Makes the video block by block (three quarters of a second each), shows every block as it "
                "comes and writes it to disk at once. If you stop it, what was made stays in output/longlive."
            ),
            inputs=INPUTS,
            outputs=OUTPUTS,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, schedule, vae, seconds, seed, window=None, continue_from=None, **size
    ) -> io.NodeOutput:
        pipeline = pipeline_of(model, schedule, vae)
        past = Past(continue_from, host.device())
        request = Request(schedule.schedule, seconds, seed, past=past.scene, **size)
        request = request if window is None else windowed(request, window)
        plan = pipeline.plan(request)
        settings = plan.settings() | {
            "attention": model.attention,
            "past_latent_frames": past.num_frames,
        }
        run = Run(plan, past, host.Progress(cls.hidden.unique_id, num_steps(plan)))
        with host.video_file(PREFIX, secrets.token_hex(3)) as video:
            run.record(pipeline, VideoWriter(video.path, plan.width, plan.height, settings))
        return io.NodeOutput(video.as_input(), run.latents(), ui=video.as_listing())


INPUTS = [
    ModelType.Input("model", tooltip="The generator, from LongLive: Load Mini."),
    ScheduleType.Input("schedule", tooltip="The timed prompts, from LongLive: Prompt Schedule."),
    io.Vae.Input("vae", tooltip="The VAE that belongs to the model; it decodes while the video is made."),
    io.Int.Input(
        "width",
        default=MINI.width,
        min=PIXEL_MULTIPLE,
        max=MAX_PIXELS,
        step=PIXEL_MULTIPLE,
        tooltip="Width of the video in pixels, a multiple of 16. LongLive Mini was trained at 64.",
    ),
    io.Int.Input(
        "height",
        default=MINI.height,
        min=PIXEL_MULTIPLE,
        max=MAX_PIXELS,
        step=PIXEL_MULTIPLE,
        tooltip="Height of the video in pixels, a multiple of 16. LongLive Mini was trained at 64.",
    ),
    io.Float.Input(
        "seconds",
        default=10.0,
        min=0.1,
        max=MAX_SECONDS,
        step=0.5,
        round=0.01,
        tooltip="Length of the video. It has 16 frames a second.",
    ),
    io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="The same seed gives the same video on the same machine.",
    ),
    WindowType.Input(
        "window",
        optional=True,
        tooltip="From LongLive: Frame Sink. Without it: the model's own window and sink.",
    ),
    io.Latent.Input(
        "continue_from",
        optional=True,
        tooltip="The LATENT of an earlier stream of the same size: this video goes on where it ended.",
    ),
]
OUTPUTS = [
    io.Video.Output(
        display_name="video", tooltip="The new part, an mp4 file. Connect Save Video to keep it."
    ),
    io.Latent.Output(
        display_name="latent",
        tooltip="Clean latents of everything so far, earlier parts included: to continue or to decode again.",
    ),
]


def pipeline_of(model: StreamModel, schedule: EncodedSchedule, vae) -> Pipeline:
    """The connected parts as one; ValueError unless they belong together."""
    expected = model.preset.model.text_dim
    if schedule.text_dim != expected:
        raise ValueError(
            f"the prompts were encoded {schedule.text_dim} wide and this model reads {expected}; "
            "connect the CLIP that belongs to the model"
        )
    return Pipeline(model.preset, model.transformer, decoder_of(vae), schedule.encode)


def windowed(request: Request, choice: WindowChoice) -> Request:
    """The request with the window, the positions and the switch policy of a Frame Sink."""
    schedule = choice.apply_to(request.schedule)
    return replace(request, schedule=schedule, window=choice.window, positions=choice.positions)


def num_steps(plan: Plan) -> int:
    """Denoising steps of the whole video."""
    return len(plan.blocks) * len(plan.preset.sigmas.steps)


class Past:
    """The latents [1, C, T, H, W] to continue from, if any; `scene` is all since the last cut."""

    def __init__(self, latent: dict | None, device: torch.device):
        self.whole: Tensor | None = latent["samples"].to(device) if latent else None
        self.num_frames = 0 if self.whole is None else self.whole.shape[2]
        scenes = latent.get(SCENES_KEY, ()) if latent else ()
        self.scenes = tuple(first for first in scenes if first < self.num_frames)
        since = self.scenes[-1] if self.scenes else 0
        self.scene = None if self.whole is None else self.whole[:, :, since:]


class Run(Hook):
    """One video in the making: what is recorded, and what the node shows meanwhile."""

    def __init__(self, plan: Plan, past: Past, progress: host.Progress):
        self._plan, self._progress = plan, progress
        self._parts = [] if past.whole is None else [past.whole.cpu()]
        self._scenes = list(past.scenes)
        self._frames = 0
        self._start = time.monotonic()

    def on_step(self, block: int, step: int, flow: Tensor, clean: Tensor) -> None:
        self._progress.step()

    def record(self, pipeline: Pipeline, writer: VideoWriter) -> None:
        """Make the video; whatever happens, the file is closed and playable."""
        try:
            with writer:
                for chunk in pipeline.run(self._plan.request, self):
                    self._keep(chunk, writer)
        except BaseException:
            self._give_up(writer)
            raise
        self._progress.text(host.some_lines([self._summary(), *self._plan.timeline.warnings]))

    def latents(self) -> dict:
        """All clean latents as a LATENT."""
        return {"samples": torch.cat(self._parts, dim=2), SCENES_KEY: tuple(self._scenes)}

    def _keep(self, chunk: Chunk, writer: VideoWriter) -> None:
        if chunk.block.opens_scene:
            self._scenes.append(sum(part.shape[2] for part in self._parts))
        self._parts.append(chunk.block.latents.cpu())
        pictures = chunk.pictures()
        writer.append(pictures)
        self._frames += len(pictures)
        self._progress.preview(pictures[-1])
        self._progress.text(self._status(chunk.block.index))

    def _give_up(self, writer: VideoWriter) -> None:
        if writer.num_frames:
            self._progress.text(f"stopped at {self._frames / FRAME_RATE:.1f} s; kept as {writer.path}")

    def _speed(self) -> float:
        return self._frames / max(time.monotonic() - self._start, 1e-3)

    def _status(self, block: int) -> str:
        blocks, speed = self._plan.blocks, self._speed()
        left = (self._plan.frames - self._frames) / speed
        return f"block {block - blocks.start + 1}/{len(blocks)} · {speed:.0f} fps · {left:.0f} s left"

    def _summary(self) -> str:
        seconds = self._frames / FRAME_RATE
        return f"{seconds:.1f} s of video · {len(self._plan.blocks)} blocks · {self._speed():.0f} fps"
