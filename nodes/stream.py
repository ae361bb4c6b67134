"""LongLiveStream: model, schedule and decoder -> a video file, written while it is made, and its latents."""

import secrets
import time
from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor

from ..longlive_core.geometry import FRAME_RATE, PIXEL_MULTIPLE
from ..longlive_core.pipeline import MAX_SECONDS, Chunk, Pipeline, Plan, Request
from ..longlive_core.rollout.rollout import Hook
from ..longlive_core.video import VideoWriter
from . import host
from .budget import run_bytes, shortage
from .io_types import (
    CATEGORY,
    SCENES_KEY,
    EncodedSchedule,
    LatentSpace,
    ModelType,
    ScheduleType,
    StreamModel,
    WindowType,
    latent_space,
)
from .vaes import StreamVae, stream_vae

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
        parts = Parts(model, schedule, stream_vae(vae))
        past = Past(continue_from, parts.space)
        request = Request(schedule.schedule, seconds, seed, past=past.scene, **size)
        plan = Plan(model.preset, window.apply_to(request, model.preset) if window else request)
        run = Run(plan, past, parts.space, host.Progress(cls.hidden.unique_id, num_steps(plan)))
        settings = plan.settings() | model.settings() | {"past_latent_frames": past.num_frames}
        with host.video_file(PREFIX, secrets.token_hex(3)) as video:
            writer = VideoWriter(video.path, plan.width, plan.height, settings)
            host.within_memory(
                lambda: run.record(parts, writer), lambda: f"{parts.shortage(plan)}{run.kept(writer)}"
            )
        return io.NodeOutput(video.as_input(), run.latents(), ui=video.as_listing())


INPUTS = [
    ModelType.Input("model", tooltip="The generator, from LongLive: Load Model, Use Model or Load Mini."),
    ScheduleType.Input("schedule", tooltip="The timed prompts, from LongLive: Prompt Schedule."),
    io.Vae.Input(
        "vae", tooltip="The VAE that belongs to the model: a Wan 2.1 VAE, or Mini's. It decodes meanwhile."
    ),
    io.Int.Input(
        "width",
        default=0,
        min=0,
        max=MAX_PIXELS,
        step=PIXEL_MULTIPLE,
        tooltip="Width of the video in pixels, a multiple of 16. 0: what the model was trained at.",
    ),
    io.Int.Input(
        "height",
        default=0,
        min=0,
        max=MAX_PIXELS,
        step=PIXEL_MULTIPLE,
        tooltip="Height of the video in pixels, a multiple of 16. 0: what the model was trained at.",
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


@dataclass(frozen=True)
class Parts:
    """The connected parts; ValueError unless they belong together."""

    model: StreamModel
    schedule: EncodedSchedule
    vae: StreamVae

    def __post_init__(self):
        expected = self.model.preset.model.text_dim
        if self.schedule.text_dim != expected:
            raise ValueError(
                f"the prompts were encoded {self.schedule.text_dim} wide and this model reads {expected}; "
                "connect the CLIP that belongs to the model"
            )
        if latent_space(self.vae.preset) != self.space:
            raise ValueError(
                f"the model is {self.model.preset.name} and this VAE decodes {self.vae.preset.name}; "
                "connect the VAE that belongs to the model"
            )

    @property
    def space(self) -> LatentSpace:
        return latent_space(self.model.preset)

    def pipeline(self, plan: Plan) -> Pipeline:
        """All of it in memory, with room for the run."""
        parts = [self.model.transformer, self.vae.decoder]
        transformer, decoder = host.load(parts, run_bytes(self.model, self.vae, plan))
        return Pipeline(self.model.preset, transformer, decoder, self.encode)

    def encode(self, prompt: str) -> Tensor:
        """The embedding of a prompt, as long as the model was trained to read."""
        return self.schedule.encode(prompt, self.model.preset.model.text_tokens)

    def shortage(self, plan: Plan) -> str:
        return shortage(self.model, self.vae, plan)


def num_steps(plan: Plan) -> int:
    """Denoising steps of the whole video."""
    return len(plan.blocks) * len(plan.preset.sigmas.steps)


class Past:
    """The samples [1, C, T, H, W] to continue from, if any; `scene`, since the last cut, is normalised."""

    def __init__(self, latent: dict | None, space: LatentSpace):
        self.samples: Tensor | None = latent["samples"].cpu() if latent else None
        normalised = space.normalised(self.samples) if latent else None
        self.num_frames = 0 if normalised is None else normalised.shape[2]
        scenes = latent.get(SCENES_KEY, ()) if latent else ()
        self.scenes = tuple(first for first in scenes if first < self.num_frames)
        since = self.scenes[-1] if self.scenes else 0
        self.scene = None if normalised is None else normalised[:, :, since:]


class Run(Hook):
    """One video in the making: what is recorded, and what the node shows meanwhile."""

    def __init__(self, plan: Plan, past: Past, space: LatentSpace, progress: host.Progress):
        self._plan, self._space, self._progress = plan, space, progress
        self._parts = [] if past.samples is None else [past.samples]
        self._scenes = list(past.scenes)
        self._frames = 0
        self._start = time.monotonic()

    def on_step(self, block: int, step: int, flow: Tensor, clean: Tensor) -> None:
        self._progress.step()

    def record(self, parts: Parts, writer: VideoWriter) -> None:
        """Make the video; whatever happens, the file is closed and playable."""
        try:
            with writer:
                for chunk in parts.pipeline(self._plan).run(self._plan.request, self):
                    self._keep(chunk, writer)
        except BaseException:
            self._give_up(writer)
            raise
        self._progress.text(host.some_lines([self._summary(), *self._plan.timeline.warnings]))

    def latents(self) -> dict:
        """All clean latents as a LATENT."""
        return {"samples": torch.cat(self._parts, dim=2), SCENES_KEY: tuple(self._scenes)}

    def kept(self, writer: VideoWriter) -> str:
        """What an error adds about the part that was made."""
        return (
            f"; the first {self._frames / FRAME_RATE:.1f} s are kept as {writer.path}" if self._frames else ""
        )

    def _keep(self, chunk: Chunk, writer: VideoWriter) -> None:
        if chunk.block.opens_scene:
            self._scenes.append(sum(part.shape[2] for part in self._parts))
        self._parts.append(self._space.samples(chunk.block.latents.cpu()))
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
