"""Headless use: load a model once, then plan -> blocks -> frames as one generator."""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .config import MINI, VERSION, Preset
from .control import NO_VACE, ControlStream
from .control import Control as Control
from .fast.compiled import COMPILED, EAGER, known_speed
from .geometry import SPACE_STRIDE, latent_size, num_frames
from .mini.loader import load_mini
from .model.attention import AUTO, attention_backend, known_attention
from .model.causal_wan import CausalWan
from .model.vace import ControlledWan
from .plan import UNTIL_STOPPED as UNTIL_STOPPED
from .plan import Plan, Request
from .plan import checked_frames as checked_frames
from .resume import Ending, Restart, Rewind, Snapshots, StateTaker, VideoState
from .rollout.noise import SeededNoise, shifted
from .rollout.retry import SecondTry, free_unused
from .rollout.rollout import Block, Hook, SourceNoise, rollout
from .schedule.schedule import PromptSchedule
from .source import NO_ENCODER, SourceStream
from .source import Source as Source
from .steering.live import LiveControl
from .steering.script import EncodeText, PromptScript, ScriptState, script_of
from .text.cache import CachedEncoder, encode_all
from .text.umt5 import encoder_identity, load_umt5
from .vae.streaming import RGB, Decoder, Encoder, StreamingDecoder
from .vae.tiled import TiledDecoder
from .weights.checkpoints import load_transformer, settle
from .weights.files import first_line, sha256_of
from .weights.lora import LoraChoice
from .weights.published import DOWNLOADS, VACE
from .weights.vace import graft
from .weights.vae_files import load_vae

COMPILING = "compiling the layers: up to two minutes the first time, later runs find the result on disk"
LOOKED_BACK = 42  # latent frames and more that a decoder's past depends on: 38 with the Wan VAE
Note = Callable[[str], None]  # takes a sentence for the user

logger = logging.getLogger("longlive")


class Chunk(NamedTuple):
    """One block: its latents, and the frames [F, H, W, 3] in [0, 1] it adds to the video.

    `begins` frames of the run come before them: less than were yielded where the run was taken back, and
    what came from there on counts no longer.
    """

    block: Block
    frames: Tensor
    begins: int = 0

    def uint8(self) -> np.ndarray:
        """The frames as a VideoWriter takes them."""
        return as_uint8(self.frames)


def as_uint8(frames: Tensor) -> np.ndarray:
    """Frames [F, H, W, 3] in [0, 1] as uint8 on the CPU."""
    return (frames * 255).round_().byte().contiguous().cpu().numpy()


@dataclass(frozen=True)
class Going:
    """A run that goes on from its restart: all that it was begun with."""

    plan: Plan
    restart: Restart
    script: PromptScript
    hook: Hook
    live: LiveControl | None
    takers: tuple[StateTaker, ...]
    images: "EncodedImages"

    def no_way_back(self, rewind: Rewind | None) -> str:
        """Why the run cannot be taken back; empty where it can."""
        if not rewind:
            return "nothing is kept to go back to"
        source, control = self.plan.request.source, self.plan.control
        footage = (source and source.frames, control and control.frames, control and control.masks)
        is_read_once = any(isinstance(frames, Iterator) for frames in footage)
        return "its footage can be read only once" if is_read_once else ""

    def back_at(self, block: int, rewind: Rewind) -> "Going":
        """The run, back at a block."""
        first_block, restart = self.plan.first_block, rewind.restart(block)
        begins, begun = self.plan.past_frames, restart.state
        end, num_frames = (begun.num_blocks, begun.num_frames - begins) if begun else (first_block, 0)
        rewind.on_back(num_frames)
        self.live.out(end - first_block - 1, num_frames)
        plan = self.plan.with_seeds(self.live.seeds(first_block))
        return replace(self, plan=plan, restart=restart)


@dataclass
class Pipeline:
    """A transformer, a decoder and a text encoder that belong together; `speed` is plain or compiled.

    `encode_ahead`, where given, encodes all prompts of a video before its rollout begins, so that a large
    encoder can be unloaded. `source` names the files it was loaded from, for a video's metadata. `encoder`
    makes latents of images and footage; None where the decoder is alone.
    """

    preset: Preset
    model: CausalWan
    decoder: Decoder
    encode_text: EncodeText = field(repr=False)
    encode_ahead: Callable[[Iterable[str]], EncodeText] | None = field(default=None, repr=False)
    speed: str = EAGER
    source: dict[str, Any] = field(default_factory=dict)
    encoder: Encoder | None = None

    def plan(self, request: Request) -> "Plan":
        """Check a request and settle everything that follows from it; ValueError says what is wrong."""
        plan = Plan(self.preset, request)
        if plan.timeline.images and self.encoder is None:
            raise ValueError(NO_ENCODER)
        return plan

    def run(
        self,
        plan: "Plan",
        hook: Hook | None = None,
        live: LiveControl | None = None,
        ending: Ending | None = None,
        snapshots: Snapshots | None = None,
        restart: Restart | None = None,
        rewind: Rewind | None = None,
    ) -> Iterator[Chunk]:
        """Yield chunk after chunk; all frames together are round(seconds * 16), the last chunk trimmed.

        A LiveControl steers the run; it can take it back where a Rewind keeps what that needs: then chunks
        come once more from the newest state before the block that it goes back to, or from the first. An
        Ending has the exact state of the video once all of it was yielded, Snapshots states on the way, which
        belong to the chunks before them. A Restart leaves out what comes before its state, and decodes the
        recorded blocks once more.
        """
        if plan.is_until_stopped and live is None:
            raise ValueError("a video without end needs a LiveControl that stops it; give the seconds")
        hook, takers = hook or Hook(), [taker for taker in (ending, snapshots, rewind) if taker]
        going = self._opened(plan, hook, live, takers, restart)
        if live:
            live.no_way_back = going.no_way_back(rewind)
        try:
            end = yield from self._chunks(going, rewind)
            while live and (back := live.goes_back()):
                going = going.back_at(plan.first_block + back.block, rewind)
                end = yield from self._chunks(going, rewind)
            if ending:
                ending.keep(*end)
        finally:
            going.images.make_room = lambda: None
            for taker in takers:
                taker.release()

    def _chunks(self, going: "Going", rewind: Rewind | None) -> Generator[Chunk, None, tuple[int, Tensor]]:
        """The chunks of a run, as it goes on from its restart. -> its blocks, frames beyond its end"""
        plan, restart, live = going.plan, going.restart, going.live
        tried = SecondTry(self.model.device, going.hook.on_note)
        begun = None if restart.before else restart.state  # that the decoder goes on from
        decoding = tried(plan.first_block, Decoding, lambda: self._decoder_for(plan, begun))
        going.images.make_room = lambda: decoding.decoder.forget()
        for taker in going.takers:
            taker.begin(plan.preset, plan.facts, lambda: decoding.decoder)
        due, begins, unseen = decoding.due, 0, max(0, -plan.cut_off)
        if begun:
            begins, unseen = begun.num_frames - plan.past_frames, 0
        earlier = restart.before or (() if begun else plan.given_blocks())
        for block in chain(earlier, self._blocks(going)):
            frames = tried(block.index, decoding.push, block)[0][unseen:]
            unseen, left = 0, plan.frames - begins
            if due is not None and len(due):
                frames = torch.cat((due, frames))
            frames, due = frames[:left], frames[left:].clone()  # a view would keep all of them in memory
            if rewind:
                rewind.add(block)
            yield Chunk(block, frames.permute(0, 2, 3, 1), begins)
            begins += len(frames)
            if live:
                live.out(block.index - plan.first_block, begins)
        return block.index + 1, due

    def _decoder_for(
        self, plan: "Plan", begun: VideoState | None = None
    ) -> tuple[StreamingDecoder, Tensor | None]:
        """A decoder that has seen the earlier video, and the frames [F, 3, H, W] cut off from it.

        `begun` is a state in mid-video, which counts before all that the plan goes on from.
        """
        decoder, request = StreamingDecoder(self.decoder), plan.request
        if state := begun or request.state:
            state.check_dtype(self.model.dtype)
            decoder.restore(state.decoder)
            return decoder, state.cut_off.to(self.model.device)
        if request.past is None or plan.whole_blocks is None:
            return decoder, None
        shown = decoder.warm(plan.whole_blocks.to(self.model.device), max(0, plan.cut_off))
        return decoder, shown[0]

    def blocks(
        self,
        plan: "Plan",
        hook: Hook | None = None,
        live: LiveControl | None = None,
        takers: Iterable[StateTaker] = (),
        restart: Restart | None = None,
    ) -> Iterator[Block]:
        """Only the latents of a plan; from the state of a Restart on."""
        return self._blocks(self._opened(plan, hook or Hook(), live, takers, restart))

    def _opened(
        self,
        plan: "Plan",
        hook: Hook,
        live: LiveControl | None,
        takers: Iterable[StateTaker],
        restart: Restart | None,
    ) -> "Going":
        """A run before its first block: its prompts are encoded."""
        restart = restart or Restart()
        for note in plan.notes:
            hook.on_note(note)
        encode = self.encode_text
        if self.encode_ahead:
            encode = self.encode_ahead(plan.timeline.prompts)
            free_unused(self.model.device)  # an encoder leaves its size behind, in pieces of its own
        images = self._scene_images(plan, hook)
        if live:
            how = (plan.block_latent_frames, plan.is_until_stopped, plan.cut_off, images)
            begun = max(0, restart.num_blocks - plan.first_block)
            script = live.script(plan.timeline, encode, plan.blocks, *how, begun)
        else:
            script = script_of(plan.timeline, encode, plan.block_latent_frames, plan.first_block, images)
        script.on_switch = self.preset.on_switch
        if self.model.compile_layers(self.speed == COMPILED):
            hook.on_note(COMPILING)
        return Going(plan, restart, script, hook, live, tuple(takers), images)

    def _blocks(self, going: "Going") -> Iterator[Block]:
        """The latents of a run, as it goes on from its restart."""
        plan, restart, script, hook = going.plan, going.restart, going.script, going.hook
        begun = restart.state
        state = begun or plan.request.state
        script.resume(state.script if state else ScriptState("", {}), is_another=bool(state and not begun))
        for taker in going.takers:
            hook = taker.watching(script, hook)
        scene_block = state.scene_block if state else 0
        noise = self._noise(plan, hook, scene_block)
        model = self._controlled(plan, scene_block)
        blocks = plan.blocks[begun.num_blocks - plan.first_block :] if begun else plan.blocks
        past = begun.rollout if begun else plan.past
        made = rollout(model, script, noise, plan.sigmas, plan.window, blocks, past, hook, restart.recorded)
        made = self._noted(made, hook)
        return going.live.until_stopped(made) if going.live else made

    def _scene_images(self, plan: Plan, hook: Hook) -> "EncodedImages":
        """The images that cues name; those of the schedule are encoded before there is a KV cache.

        One that is sent later takes the memory of the decoder's past, and what a plan with images counts.
        """
        images = EncodedImages(plan.image, self.encode, SecondTry(self.model.device, hook.on_note))
        for name in plan.timeline.images:
            images.latents(name, plan.first_block)
            free_unused(self.model.device)
        return images

    def _noise(self, plan: Plan, hook: Hook, scene_block: int) -> SeededNoise | SourceNoise:
        """What the blocks of a plan begin from; a source at strength 1 counts for nothing."""
        source = plan.request.source
        noise = SeededNoise(plan.request.seed, plan.block_shape, plan.cue_seeds)
        if source is None or source.strength == 1:
            return noise
        like = torch.empty(plan.block_shape, device=self.model.device)
        stream = SourceStream(source, self.encoder, like, plan.source_start, scene_block, hook.on_note)
        return SourceNoise(noise, stream, shifted(source.strength, self.preset.sigmas.shift))

    def _controlled(self, plan: Plan, scene_block: int) -> CausalWan | ControlledWan:
        """The transformer, with the control of a plan if it has one."""
        control = plan.control
        if control is None:
            return self.model
        if self.model.vace is None:
            raise ValueError(NO_VACE)
        like = torch.empty(plan.block_shape, device=self.model.device)
        stream = ControlStream(control, self.encoder, like, plan.control_start, scene_block)
        return ControlledWan(self.model, stream, control.scale, stream.references)

    def encode(self, frames: Tensor) -> Tensor:
        """As `encoded`, by the encoder of this pipeline; ValueError too where there is none."""
        if self.encoder is None:
            raise ValueError(NO_ENCODER)
        return encoded(frames.to(self.model.device), self.encoder, self.preset)

    def _noted(self, blocks: Iterator[Block], hook: Hook) -> Iterator[Block]:
        """The same blocks; a failure of the compiler is reported when it happened, once for the model."""
        for block in blocks:
            if failure := self.model.take_compile_failure():
                hook.on_note(f"not compiled, layers run eagerly: {first_line(failure)}")
            yield block

    def settings(self, plan: "Plan") -> dict[str, Any]:
        """What a video's metadata says: all that is needed to make it again, and with what it was made."""
        return plan.settings() | environment(self.model.device) | {"speed": self.speed} | self.source

    def stream(
        self, schedule: PromptSchedule | str, seconds: float = 10.0, **request: Any
    ) -> Iterator[Tensor]:
        """Yield frames [F, H, W, 3] in [0, 1] as they are made; keywords are those of Request."""
        if isinstance(schedule, str):
            schedule = PromptSchedule.parse(schedule)
        for chunk in self.run(self.plan(Request(schedule, seconds, **request))):
            yield chunk.frames


@torch.no_grad()
def encoded(frames: Tensor, encoder: Encoder, preset: Preset) -> Tensor:
    """Frames [F, H, W, 3] in [0, 1] -> latents [1, C, T, h, w] to begin a video with, or to continue.

    T is 1 + (F - 1) // 4; frames beyond 4T - 3 are left out. Where a preset wants whole blocks, the last
    frame is held until there is one. ValueError for no frames, and sizes that are no multiples of 16.
    """
    if frames.ndim != 4 or not len(frames) or frames.shape[3] < RGB:
        raise ValueError(
            f"frames of shape {list(frames.shape)} cannot be encoded; give [frames, height, width, 3]"
        )
    latent_size(frames.shape[2], frames.shape[1])
    frames = frames[..., :RGB]
    if preset.commits_past:
        missing = max(0, num_frames(preset.window.block_latent_frames) - len(frames))
        frames = torch.cat((frames, frames[-1:].expand(missing, -1, -1, -1)))
    return encoder.encode(frames.float().permute(0, 3, 1, 2)[None])


class EncodedImages:
    """The SceneImages of a run: each is encoded once, and its latents are kept on the CPU.

    `make_room` is called before that: a scene that begins with an image needs nothing of the one before.
    """

    def __init__(self, read: Callable[[str], Tensor], encode: Callable[[Tensor], Tensor], tried: SecondTry):
        self.read, self._encode, self._tried = read, encode, tried
        self.make_room: Callable[[], None] = lambda: None
        self._latents: dict[str, Tensor] = {}

    def latents(self, name: str, block: int) -> Tensor:
        """As of SceneImages."""
        if name not in self._latents:
            self.make_room()
            self._latents[name] = self._tried(block, self._encode, self.read(name)).cpu()
        return self._latents[name]


class Decoding:
    """The frames of block after block. Decoding uses the past up: for a second try it is made again.

    `begin` gives a decoder before the first block, and the frames that are `due` before its own.
    """

    def __init__(self, begin: Callable[[], tuple[StreamingDecoder, Tensor | None]]):
        self._begin = begin
        self.decoder, self.due = begin()
        self._newest: deque[Block] = deque()  # those that the past depends on

    def push(self, block: Block) -> Tensor:
        """The frames [B, F, 3, 8H, 8W] that a block adds; the same for the same block once more."""
        decoder, self.decoder = self.decoder, None
        if decoder is None:
            decoder, _ = self._begin()
            for earlier in self._newest:
                decoder.push(earlier.latents, earlier.opens_scene)
        frames = decoder.push(block.latents, block.opens_scene)
        self.decoder = decoder
        self._newest.append(block)
        if (len(self._newest) - 1) * block.latents.shape[2] >= LOOKED_BACK:
            self._newest.popleft()
        return frames


def environment(device: torch.device) -> dict[str, str]:
    """Versions and device, for a video's metadata."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"version": VERSION, "torch": torch.__version__, "device": name}


@dataclass(frozen=True)
class ModelFiles:
    """Where the parts of a model are, and how to load them: options of the command line, by the same names.

    `model` is `mini`, a name in DOWNLOADS whose files are under `folder`, or a checkpoint. `family` is a name
    in config.RELATIVES, None to read it from the checkpoint; `precision` is of the stored weights; `tile` is
    the size of a decoder's tiles in pixels, 0 for none; `embeddings` is the folder of cached prompt
    embeddings, None for the user's cache folder; `vace`, for control, is a file of it or `vace-1.3b`.
    """

    model: str | Path = MINI.name
    lora: tuple[LoraChoice, ...] = ()
    vae: Path | None = None
    text_encoder: Path | None = None
    tokenizer: Path | None = None
    keep_text_encoder: bool = False
    family: str | None = None
    precision: str = "bf16"
    device: str = AUTO
    tile: int = 0
    attention: str = AUTO
    speed: str = EAGER
    folder: Path = Path("models")
    embeddings: Path | None = None
    vace: Path | None = None

    def __post_init__(self):
        choices = (one if isinstance(one, LoraChoice) else LoraChoice(Path(one)) for one in self.lora)
        object.__setattr__(self, "lora", tuple(choices))
        if str(self.vace) == VACE:
            object.__setattr__(self, "vace", self._downloaded_vace())
        for name in ("vae", "vace", "text_encoder", "tokenizer", "folder", "embeddings"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(path))

    def _downloaded_vace(self) -> Path:
        """The file of VACE in the folder; ValueError if it is not there."""
        (file,) = DOWNLOADS[VACE]
        if not (path := Path(self.folder, file.kind, file.name)).exists():
            raise ValueError(f"{VACE} needs {path}; run longlive download {VACE} --folder {self.folder}")
        return path

    def unused_by_mini(self) -> list[str]:
        """Options that were given and mean nothing to the built-in model, which runs on the CPU."""
        given = [one.name for one in fields(self) if getattr(self, one.name) != one.default]
        used = (
            "model",
            "attention",
            "speed",
            "folder",
            "vace",
            *(["device"] if self.device == "cpu" else []),
        )
        return [name for name in given if name not in used]

    def found(self) -> "ModelFiles":
        """The same with the files of a name in DOWNLOADS; ValueError unless there is a checkpoint."""
        if self.model in DOWNLOADS:
            paths = {f.kind: Path(self.folder, f.kind, f.name) for f in reversed(DOWNLOADS[self.model])}
            if missing := [path for path in paths.values() if not path.exists()]:
                raise ValueError(
                    f"{self.model} needs {missing[0]}; run "
                    f"longlive download {self.model} --folder {self.folder}"
                )
            own = {"vae": paths.get("vae"), "text_encoder": paths.get("text_encoders")}
            own = {name: getattr(self, name) or path for name, path in own.items()}
            loras = [LoraChoice(paths["loras"])] if "loras" in paths else []
            return replace(self, model=paths["diffusion_models"], lora=(*loras, *self.lora), **own)
        if not Path(self.model).exists():
            names = ", ".join((MINI.name, *(name for name in DOWNLOADS if name != VACE)))
            raise ValueError(f"{str(self.model)!r} is neither a file nor one of {names}")
        return replace(self, model=Path(self.model))

    def source(self) -> dict[str, Any]:
        """What a video's metadata says of these files: names, not places."""
        return {
            "checkpoint": self.model.name,
            "sha256": sha256_of(self.model),
            "loras": {choice.path.name: choice.strength for choice in self.lora},
            "vae": self.vae.name,
            "text_encoder": self.text_encoder.name,
            "precision": self.precision,
            "attention": self.attention,
            **({"vace": self.vace.name} if self.vace else {}),
        }


def load_pipeline(
    model: str | Path = MINI.name,
    on_progress: Callable[[int, int], None] | None = None,
    on_note: Note = logger.info,
    **options: Any,
) -> Pipeline:
    """Load `mini`, a download by its name, or a checkpoint; `options` are the fields of ModelFiles.

    `on_progress(weights done, weights in all)` is called while a checkpoint loads, `on_note` with sentences
    for the user. Raises ValueError in one sentence for everything that is wrong with options or files.
    """
    files = ModelFiles(model, **options)
    (speed, *notes), (attention, *more) = known_speed(files.speed), known_attention(files.attention)
    for note in filter(None, (*notes, *more)):
        on_note(note)
    files = replace(files, speed=speed, attention=attention)
    return load_built_in(files) if model == MINI.name else load_files(files.found(), on_progress, on_note)


def load_built_in(files: ModelFiles) -> Pipeline:
    """LongLive Mini, in fp32 on the CPU."""
    if given := files.unused_by_mini():
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(
            f"{named} cannot be used with the built-in model mini; leave out, or choose a --model"
        )
    mini = load_mini(attend=attention_backend(files.attention))
    if files.vace:
        graft(mini.transformer, files.vace, "fp32")
    source = {"precision": "fp32", "attention": files.attention}
    return Pipeline(
        MINI,
        mini.transformer,
        mini.autoencoder,
        mini.encode_text,
        speed=files.speed,
        source=source,
        encoder=mini.autoencoder,
    )


def load_files(files: ModelFiles, on_progress: Callable[[int, int], None] | None, on_note: Note) -> Pipeline:
    """The pipeline of a checkpoint, a VAE and a text encoder, which is loaded when a prompt is not cached."""
    for part, option in ((files.text_encoder, "--text-encoder"), (files.vae, "--vae")):
        if part is None:
            raise ValueError(f"{files.model} needs {option}: a checkpoint holds only the transformer")
    device = usable_device(files.device)
    attend = attention_backend(files.attention, device, on_note)
    loaded = load_transformer(
        files.model, files.lora, files.precision, device, attend, files.family, on_progress=on_progress
    )
    grafted = ()
    if files.vace:
        grafted = graft(loaded.transformer, files.vace, files.precision, device, files.lora)
    for note in (*loaded.notes, *grafted, *settle(loaded.transformer, files.precision, device)):
        on_note(note)
    encoder, vae = text_encoder(files, device), load_vae(files.vae, loaded.transformer.dtype, device)
    return Pipeline(
        loaded.preset,
        loaded.transformer,
        in_tiles(vae, files.tile),
        encoder,
        lambda prompts: encode_all(encoder, prompts, files.keep_text_encoder),
        files.speed,
        files.source(),
        vae if vae.encoder else None,
    )


def in_tiles(decoder: Decoder, tile: int) -> Decoder:
    """The decoder in tiles of so many pixels, if any."""
    overlap = tile // 4 // SPACE_STRIDE * SPACE_STRIDE
    return TiledDecoder(decoder, tile, overlap, "cpu") if tile else decoder


def text_encoder(files: ModelFiles, device: torch.device) -> CachedEncoder:
    """Prompts -> embeddings, cached on disk."""
    dtype = torch.bfloat16
    return CachedEncoder(
        lambda: load_umt5(files.text_encoder, files.tokenizer, dtype, device),
        encoder_identity(files.text_encoder, files.tokenizer, dtype),
        files.embeddings,
    )


def usable_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one; ValueError for a device that is not here."""
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ValueError(f"device {name!r} cannot be used here; choose cpu, or leave --device out") from error
