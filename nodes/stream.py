"""LongLiveStream: model, schedule and decoder -> a video file that grows as it is made, and its latents."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..longlive_core.config import Preset, SigmaConfig
from ..longlive_core.geometry import FRAME_RATE, MAX_SIDE, PIXEL_MULTIPLE, block_seconds, num_frames
from ..longlive_core.memory import GIB, Needs, Setting, estimate, fitting
from ..longlive_core.output.sound import Sound
from ..longlive_core.output.video import VideoWriter
from ..longlive_core.pipeline import (
    UNTIL_STOPPED,
    Chunk,
    Pipeline,
    Plan,
    Request,
    as_uint8,
    encoded,
    environment,
)
from ..longlive_core.resume import STATES_BYTES, Ending, Rewind, VideoState
from ..longlive_core.rollout.retry import free_unused
from ..longlive_core.rollout.rollout import Hook
from ..longlive_core.schedule.cue import MAX_SECONDS
from ..longlive_core.steering.live import FULL_SPEED, PACES, REAL_TIME
from . import host
from .beginning import Beginning
from .io_types import (
    ADVANCED,
    CATEGORY,
    FRAMES_KEY,
    SCENES_KEY,
    STATE_KEY,
    ControlType,
    EncodedSchedule,
    ModelType,
    Samples,
    ScheduleType,
    SourceType,
    StreamModel,
    WindowChoice,
    WindowType,
    found_by,
    latent_space,
)
from .live import RUNS, LiveRun, UnloadingRoom
from .takes import TAKES, Take
from .unfinished import RESUME, UNFINISHED, Unfinished
from .vaes import BLOCK, StreamVae, decoded, encode_bytes, stream_vae

PREFIX = "longlive/stream"
BEGINS = "start_image", "source", "control", "continue_from"
VIDEO, LATENT = 0, 1  # the numbers of these outputs
STEPS = tuple(SigmaConfig().choices)
MAX_CUT_OFF = num_frames(2 * BLOCK) - num_frames(BLOCK) - 1  # all frames of a block but one
NUM_SHOWN = 3  # settings that would fit
SIDE = {"default": 0, "min": 0, "max": MAX_SIDE, "step": PIXEL_MULTIPLE}


class LongLiveStream(io.ComfyNode):
    """The one node that makes video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveStream",
            display_name="LongLive: Stream",
            category=CATEGORY,
            **found_by(
                "long video, infinite video, endless video, text to video, t2v, realtime, "
                "real time, live, interactive video, extend video, continue video, streaming, wan"
            ),
            description=(
                "Makes the video block by block (three quarters of a second each), shows every block as it "
                "comes and writes it to disk at once. It is kept in output/longlive, also if you stop it, "
                "unless it goes to another node, such as Save Video."
            ),
            inputs=INPUTS,
            outputs=OUTPUTS,
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @host.plain_errors()
    def execute(cls, model, schedule, vae, window=None, **made) -> io.NodeOutput:
        pace = made.pop("pace", FULL_SPEED)
        wanted = {name: made.pop(name, False) for name in ("keep_state", "whole_video")}
        wanted["sound"] = sound = sound_of(made.pop("audio", None))
        parts = Parts(model, schedule, stream_vae(vae))
        begins = Beginning(**{name: made.pop(name, None) for name in BEGINS})
        begun = Begun.of(cls.hidden, parts, begins, window, sound, **made)
        plan = begun.plan
        steering = {"pace": pace, "room": UnloadingRoom(schedule.has_room, lambda: parts.load(plan))}
        steering |= {"on_switch": window.on_switch if window else None, "images": plan.request.images}
        size, workflow = (plan.width, plan.height), host.workflow_id(cls.hidden)
        live = LiveRun(cls.hidden.unique_id, size, begun.settings, workflow, schedule.warnings_of, **steering)
        live.notes = begins.notes
        run = Run(parts, begun, cls.hidden.unique_id, live.notes, **wanted)
        file = host.video_file(PREFIX, live.id, is_in_another_file(cls.hidden))
        with begun.unfinished, live.going_on(), file as video:
            latent = run.record(live, live.writer(video, host.graph_metadata(cls.hidden), sound))
        return io.NodeOutput(video.as_input(), latent, ui=video.as_listing() | live.as_listing())

    @classmethod
    def fingerprint_inputs(cls, **_) -> int:
        """Changes after a steered run, so that ComfyUI runs the node again."""
        return RUNS.num_steered(cls.hidden.unique_id)


def is_in_another_file(hidden) -> bool:
    """Whether the video goes to another node, or a stream that continues it begins its file with it."""
    return host.is_connected(hidden, VIDEO) or host.is_connected(hidden, LATENT, whole_video=True)


INPUTS = [
    ModelType.Input("model", tooltip="The generator, from LongLive: Load Model, Use Model or Load Mini."),
    ScheduleType.Input("schedule", tooltip="The timed prompts, from LongLive: Prompt Schedule."),
    io.Vae.Input(
        "vae", tooltip="The VAE that belongs to the model: a Wan 2.1 VAE, or Mini's. It decodes every block."
    ),
    io.Int.Input(
        "width",
        **SIDE,
        tooltip=(
            "Width in pixels, a multiple of 16. 0: it follows from height and the proportions of "
            "start_image, source or model. Both 0: about as many pixels as the model was trained at."
        ),
    ),
    io.Int.Input(
        "height",
        **SIDE,
        tooltip="Height in pixels, a multiple of 16. 0: it follows from width, as width does from it.",
    ),
    io.Float.Input(
        "seconds",
        default=10.0,
        min=0.0,
        max=MAX_SECONDS,
        step=0.5,
        round=0.01,
        tooltip=(
            "Length of the video. It has 16 frames a second. 0: as long as the source that is transformed, "
            "else until you stop it; at 832x480 its latents take 100 MB a minute: of the disk, and at the "
            "end of RAM."
        ),
    ),
    io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="The same seed gives the same video on the same machine with the same number of threads.",
    ),
    io.Combo.Input(
        "pace",
        **ADVANCED,
        options=list(PACES),
        default=FULL_SPEED,
        optional=True,
        tooltip=(
            "full speed: as fast as it can. real time: never more than a block ahead of the clock, so that a "
            "prompt you send takes effect at what you see."
        ),
    ),
    io.Boolean.Input(
        "keep_state",
        **ADVANCED,
        default=False,
        optional=True,
        tooltip=(
            "Put the exact state into the latent, so that continue_from goes on as if there had been no end. "
            "It takes as much RAM as the KV cache: 3.2 GiB at 832x480."
        ),
    ),
    WindowType.Input(
        "window",
        optional=True,
        tooltip="From LongLive: Frame Sink. Without it: the model's own window and sink.",
    ),
    io.Latent.Input(
        "continue_from",
        optional=True,
        tooltip=(
            "The LATENT of an earlier stream, or of any clip that VAE Encode encoded, of the same size: this "
            "video goes on where it ended."
        ),
    ),
    io.Int.Input(
        "steps",
        **ADVANCED,
        default=max(STEPS),
        min=min(STEPS),
        max=max(STEPS),
        optional=True,
        tooltip=(
            "Denoising steps per block, of the 4 that the model learned. With Mini, 3 are 1.3 times as fast, "
            "the first block a little worse; 2 are 1.6 times as fast, more first blocks go wrong, and a "
            "background may change at a switch."
        ),
    ),
    io.Boolean.Input(
        "whole_video",
        **ADVANCED,
        default=False,
        optional=True,
        tooltip="Begin the file with the video in continue_from, decoded again: one file of both.",
    ),
    io.Audio.Input(
        "audio",
        optional=True,
        tooltip=(
            "The sound of the video, as Load Audio gives it. It begins with the file: with the new part, or "
            "with the whole video if whole_video is on. It is cut, or goes on in silence, to be as long as "
            "the video."
        ),
    ),
    io.Image.Input(
        "start_image",
        optional=True,
        tooltip=(
            "The video begins with this image, or with up to 45 of a batch. It is scaled to cover the frame. "
            "The first prompt must name all that is seen in it."
        ),
    ),
    SourceType.Input(
        "source",
        optional=True,
        tooltip="Footage to transform or to go on from, from LongLive: Source.",
    ),
    ControlType.Input(
        "control",
        optional=True,
        tooltip="What the video follows, from LongLive: Control; the model needs VACE.",
    ),
    io.Combo.Input(
        "resume",
        **ADVANCED,
        options=list(RESUME),
        default=UNFINISHED,
        optional=True,
        tooltip=(
            "unfinished run: after a crash, or when ComfyUI was stopped, the same graph with the same seed "
            "goes on where it was, with the prompts that were sent. off: it starts over."
        ),
    ),
]
OUTPUTS = [
    io.Video.Output(
        display_name="video",
        tooltip=(
            "The new part, or the whole video, as an mp4 file. If nothing is connected, it is kept in "
            "output/longlive; Save Video puts it where you like."
        ),
    ),
    io.Latent.Output(
        display_name="latent",
        tooltip="Clean latents of everything so far, earlier parts included: to continue or to decode again.",
    ),
]


@dataclass(frozen=True)
class Parts:
    """The connected parts; ValueError unless they fit each other."""

    model: StreamModel
    schedule: EncodedSchedule
    vae: StreamVae

    def __post_init__(self):
        expected = self.model.preset.model.text_dim
        if self.schedule.text_dim != expected:
            raise ValueError(
                f"the prompts were encoded {self.schedule.text_dim} wide and this model takes {expected}; "
                "connect the CLIP that belongs to the model"
            )
        if latent_space(self.vae.preset) != self.space:
            raise ValueError(
                f"the model is {self.model.preset.name} and this VAE decodes {self.vae.preset.name}; "
                "connect the VAE that belongs to the model"
            )

    @property
    def space(self) -> Samples:
        return latent_space(self.model.preset)

    def pipeline(self, plan: Plan) -> Pipeline:
        """The pipeline of a run, with all parts in memory."""
        transformer, placed = self.load(plan)
        speed, encoder = self.model.speed, placed.encoder
        return Pipeline(self.model.preset, transformer, placed, self.encode, speed=speed, encoder=encoder)

    def load(self, plan: Plan) -> list:
        """Transformer and decoder in memory, with room for the run."""
        return host.load([self.model.transformer, self.vae.decoder], self.run_bytes(plan))

    def encoded(self, frames: Tensor) -> Tensor:
        """Latents [1, C, T, h, w] of frames [F, H, W, 3], on the CPU; what that took is free again."""
        needed = encode_bytes(self.vae, frames.shape[2], frames.shape[1])
        (placed,) = host.load([self.vae.decoder], needed)
        latents = encoded(frames.to(host.vae_device()), placed, self.model.preset).cpu()
        free_unused(host.vae_device())
        return latents

    def encode(self, prompt: str) -> Tensor:
        """The embedding of a prompt; ComfyUI's encoders make more rows of a long one than the model takes."""
        return self.schedule.embeds_of(prompt)[:, : self.model.preset.model.text_tokens]

    def needs(self, plan: Plan) -> tuple[Setting, Needs]:
        """What the memory of a run depends on, and how much it takes."""
        model, kind = self.model, self.vae.kind
        encoding = {"has_source": plan.request.source is not None, "has_control": plan.control is not None}
        encoding |= {"has_images": plan.request.images is not None}
        how = (model.precision, kind, plan.window, plan.blocks.stop)
        setting = Setting(plan.width, plan.height, *how, **encoding)
        return setting, estimate(model.preset, setting, host.device())

    def run_bytes(self, plan: Plan) -> int:
        """Bytes that a run needs next to the weights and the context of a GPU; ComfyUI counts only GPUs."""
        if host.device().type == "cpu":
            return 0
        needs = self.needs(plan)[1]
        return needs.total - needs.weights - needs.decoder - needs.gpu_context

    def shortage(self, plan: Plan) -> str:
        """One sentence: what was needed, how much of the device was free, and settings that should fit."""
        wanted, needs = self.needs(plan)
        usable = host.usable_bytes() + needs.gpu_context  # which ComfyUI has taken already
        fits = (setting for setting, _ in fitting(self.model.preset, wanted, usable, host.device()))
        shown = map(str, islice((setting for setting in fits if setting != wanted), NUM_SHOWN))
        table = ", ".join(" ".join(line.split()) for line in needs.lines())
        return (
            f"not enough memory for {wanted}: it needs {table}, and {usable / GIB:.2f} GiB were free here; "
            f"what should fit: {' | '.join(shown) or 'only a smaller size'} "
            "(tiny decoder: LongLive: Load VAE; fp8: LongLive: Load Model; window: LongLive: Frame Sink)"
        )


def sound_of(audio: Mapping | None) -> Sound | None:
    """The sound of an AUDIO of ComfyUI's; ValueError if it is empty."""
    if audio is None:
        return None
    return Sound.of_waveform(audio["waveform"].float().cpu().numpy(), int(audio["sample_rate"]))


def planned(parts: Parts, begins: Beginning, window: WindowChoice | None, **made) -> tuple[Plan, "Past"]:
    """The plan of the widgets and all that is connected, and what it goes on from."""
    begins.check(parts.model, parts.vae, parts.schedule.schedule)
    made["images"] = host.input_images(begins.notes) if parts.vae.has_encoder else None
    preset, space = parts.model.preset, parts.space
    size = made["width"], made["height"] = begins.size(made["width"], made["height"], preset)

    def samples(frames: Tensor) -> Tensor:
        return space.raw(parts.encoded(frames))

    past = Past(begins.earlier(samples, preset.window.window_latent_frames, *size), space)
    sides = size if all(size) else ((past.state or preset).width, (past.state or preset).height)
    if (first := begins.first_frames(*sides)) is not None:
        made["given"] = parts.encoded(first)
    made |= begins.made(*sides)
    if begins.continued:
        shown = partial(begins.continued.frames, *sides, begins.notes)
        past.show(shown, begins.continued.footage.num_frames)
    return Plan(preset, request_of(parts.schedule, window, past, preset, **made)), past


def request_of(
    schedule: EncodedSchedule, window: WindowChoice | None, past: "Past", preset: Preset, **made
) -> Request:
    """The request of the widgets; 0 seconds are those of the source, else until stopped."""
    seconds = made.pop("seconds") or (0 if "source" in made else UNTIL_STOPPED)
    made |= {"state": past.state} if past.state else {"past": past.scene, "cut_off": past.cut_off}
    made["steps"] = min(made.get("steps", max(STEPS)), len(preset.sigmas.steps))
    request = Request(schedule.schedule, seconds, **made)
    return window.apply_to(request, preset) if window else request


class Past:
    """The samples [1, C, T, H, W] to continue from, if any; `scene`, since the last cut, is normalised.

    `cut_off` pixel frames at their end were in no video yet; `state` is exact, where there is one.
    `num_shown` frames were in one; `footage` gives them, where they are not decoded.
    """

    def __init__(self, latent: dict | None, space: Samples):
        self.samples: Tensor | None = latent["samples"].cpu() if latent else None
        normalised = space.normalised(self.samples) if latent else None
        self.num_frames = 0 if normalised is None else normalised.shape[2]
        scenes = latent.get(SCENES_KEY, ()) if latent else ()
        self.scenes = tuple(first for first in scenes if first < self.num_frames)
        since = self.scenes[-1] if self.scenes else 0
        self.scene = None if normalised is None else normalised[:, :, since:]
        self.num_pixel_frames = num_frames(self.num_frames)
        cut_off = self.num_pixel_frames - latent.get(FRAMES_KEY, self.num_pixel_frames) if latent else 0
        # other nodes may have shortened the samples without changing the number of frames
        self.cut_off = cut_off if 0 <= cut_off <= MAX_CUT_OFF else 0
        self.num_shown = self.num_pixel_frames - self.cut_off
        self.footage: Callable[[], Iterator[Tensor]] | None = None
        self.state: VideoState | None = latent.get(STATE_KEY) if latent else None
        if self.state and not self._has_made(space.raw(self.state.newest_latents)):
            self.state = None

    def show(self, footage: Callable[[], Iterator[Tensor]], num_frames: int) -> None:
        """Of the footage that the samples are the end of, all frames are shown, as they are."""
        self.footage, self.num_shown = footage, num_frames

    def _has_made(self, newest: Tensor) -> bool:
        """Whether the state still belongs to the samples, which other nodes may have changed."""
        made = self.state.num_blocks * self.state.rollout.window.block_latent_frames
        return made <= self.num_frames and torch.equal(self.samples[:, :, -newest.shape[2] :], newest)


class Begun(NamedTuple):
    """A run before its first block: what it makes, from what, and what an unfinished one of it left."""

    plan: Plan
    past: Past
    settings: dict[str, Any]
    unfinished: Unfinished

    @classmethod
    def of(
        cls,
        hidden: Any,
        parts: Parts,
        begins: Beginning,
        window: WindowChoice | None,
        sound: Sound | None,
        resume: str = UNFINISHED,
        **made: Any,
    ) -> "Begun":
        """From a node's inputs."""
        plan, past = planned(parts, begins, window, **made)
        more = environment(host.device()) | parts.model.settings() | {"past_latent_frames": past.num_frames}
        more |= {"sound": sound.settings} if sound else {}
        unfinished = Unfinished(plan.settings() | more, plan, hidden, resume)
        plan = unfinished.plan()
        return cls(plan, past, plan.settings() | more, unfinished)


class Run(Hook):
    """One video as it is made: what is kept of it, and what the node shows.

    `notes` takes what the panel says of it: warnings, what was changed on the way, where it is kept.
    """

    def __init__(
        self,
        parts: Parts,
        begun: Begun,
        node_id: str,
        notes: list[str],
        keep_state: bool,
        whole_video: bool = False,
        sound: Sound | None = None,
    ):
        self._parts, self._plan, self._unfinished = parts, begun.plan, begun.unfinished
        plan, past = begun.plan, begun.past
        self._progress = host.Progress(node_id, len(plan.blocks) * len(plan.sigmas))
        self._past, self._footage = past.samples, past.footage
        in_first = plan.num_given if past.num_frames else 0  # in the first block that is made
        self._earlier_latents = past.num_frames - in_first
        self._scenes = past.scenes
        self._past_frames = past.num_pixel_frames - past.cut_off
        self._ending = Ending() if keep_state else None
        self._frames = 0
        self._notes = notes
        notes.extend(plan.timeline.warnings)
        self._num_shown = past.num_shown if whole_video else 0
        earlier = self._num_shown
        seconds = 0 if plan.is_until_stopped else (earlier + plan.frames) / FRAME_RATE
        notes.extend(sound.notes(seconds) if sound else ())

    def on_note(self, text: str) -> None:
        self._notes.append(text)

    def on_step(self, block: int, step: int, flow: Tensor, clean: Tensor) -> None:
        self._progress.step((block - self._plan.blocks.start) * len(self._plan.sigmas) + step + 1)

    def record(self, live: LiveRun, writer: VideoWriter) -> dict:
        """Make the video and return its latents; the file is closed and playable in any case.

        Raises host.OutOfMemory, which names settings that fit, if memory does not suffice.
        """
        return host.within_memory(
            lambda: self._record(live, writer),
            lambda: f"{self._parts.shortage(self._plan)}{self._kept(writer)}",
        )

    def _record(self, live: LiveRun, writer: VideoWriter) -> dict:
        try:
            with live.recording(writer):
                self._write_past(writer)
                self._rewind = self._rewind_of(live, writer)
                with self._taken(live, self._parts.pipeline(self._plan)) as pipeline:
                    self._notes.extend(self._unfinished.go_on(self._rewind))
                    kept = {"rewind": self._rewind, "restart": self._rewind.first_restart()}
                    for chunk in pipeline.run(self._plan, self, live.control, self._ending, **kept):
                        self._keep(chunk, writer)
                        self._unfinished.add(chunk, live.control)
            latent = self.latents()
        except BaseException:
            self._give_up(writer)
            raise
        if self._unfinished.was_steered:
            RUNS.count_steered(live)
        return latent

    def _rewind_of(self, live: LiveRun, writer: VideoWriter) -> Rewind:
        """What is kept to go back to, in a quarter of the free RAM at most."""
        budget = min(STATES_BYTES, host.free_ram() // 4)

        def cut(num_frames: int) -> None:
            live.cut(self._num_before + num_frames)
            self._unfinished.cut(live.control.backs[-1].block)

        disk = self._unfinished.journal
        return Rewind(lambda: writer.can_be_cut, cut, budget, self._unfinished.save, disk=disk)

    @contextmanager
    def _taken(self, live: LiveRun, pipeline: Pipeline) -> Iterator[Pipeline]:
        """Begin with the blocks of the node's run before that are those of this one; keep what this makes."""
        parts, plan, schedule = self._parts, self._plan, self._plan.request.schedule
        made_by = (parts.model.transformer, parts.vae.decoder)
        take = Take(made_by, live.settings, plan.latents, schedule.always, self._rewind, live.control.cues)
        is_live = live.control.pace == REAL_TIME  # what is sent is to take effect at what is seen
        count = 0 if is_live else TAKES.begin(live.node_id, take, plan, pipeline.encode_text)
        if count:
            seconds = block_seconds(count, plan.block_latent_frames)
            self._notes.append(f"the first {seconds:.1f} s are those of the run before")
        try:
            yield replace(pipeline, encode_text=take.noted(pipeline.encode_text))
        finally:
            TAKES.keep(live.node_id, take)

    def _write_past(self, writer: VideoWriter) -> None:
        """Begin the file with the earlier video, if asked; without the frames that its end cut off."""
        left = self._num_shown
        for part in self._earlier() if left else ():
            host.throw_if_interrupted()
            frames = part[:left]
            left -= len(frames)
            writer.append(as_uint8(frames))
        self._num_before = self._num_shown - left
        writer.can_be_cut = True  # to be taken back to its beginning

    def _earlier(self) -> Iterator[Tensor]:
        """The earlier video in pieces [F, H, W, 3]: footage as it is, latents decoded."""
        if self._footage:
            return self._footage()
        return (part[0] for part in decoded(self._parts.vae, self._past, self._scenes))

    def latents(self) -> dict:
        """All clean latents as a LATENT, with what continue_from needs."""
        samples, scenes = self._gathered()
        made = {"samples": samples, SCENES_KEY: scenes, FRAMES_KEY: self._past_frames + self._frames}
        return made | ({STATE_KEY: self._ending.state} if self._ending else {})

    def _gathered(self) -> tuple[Tensor, tuple[int, ...]]:
        """Samples of the earlier video and of this one, filled in block by block; where scenes begin."""
        begin, scenes = self._earlier_latents, [*self._scenes]
        batch, channels, length, *size = next(self._rewind.made()).latents.shape
        whole = torch.empty(batch, channels, begin + length * len(self._rewind.blocks), *size)
        if begin:
            whole[:, :, :begin] = self._past[:, :, :begin]
        for at, block in zip(range(begin, whole.shape[2], length), self._rewind.made(), strict=True):
            whole[:, :, at : at + length] = self._parts.space.raw(block.latents)
            if block.opens_scene:
                scenes.append(at)
        return whole, tuple(scenes)

    def _kept(self, writer: VideoWriter) -> str:
        """What an error says of the part that was made."""
        seconds = seconds_in(writer)
        return f"; the first {seconds:.1f} s are kept as {host.shown_path(writer.path)}" if seconds else ""

    def _keep(self, chunk: Chunk, writer: VideoWriter) -> None:
        frames = chunk.uint8()
        writer.append(frames)
        self._frames = chunk.begins + len(frames)
        self._progress.preview(frames[-1])

    def _give_up(self, writer: VideoWriter) -> None:
        if seconds := seconds_in(writer):
            self._notes.append(f"the first {seconds:.1f} s are kept as {host.shown_path(writer.path)}")


def seconds_in(writer: VideoWriter) -> float:
    """How long the video on disk is: frames that were made may not have been written."""
    return writer.num_frames / FRAME_RATE if writer.path.exists() else 0.0
