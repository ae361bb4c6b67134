"""Headless use: load a model once, then plan -> blocks -> frames as one generator."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .config import ABSOLUTE_LATENT_FRAMES, MINI, VERSION, Preset, WindowConfig
from .fast.compiled import COMPILED, EAGER, known_speed
from .geometry import FRAME_RATE, SPACE_STRIDE, frames_of_seconds, latent_size, num_blocks, num_frames
from .mini.loader import load_mini
from .model.attention import AUTO, attention_backend, known_attention
from .model.causal_wan import CausalWan
from .resume import Ending, VideoState
from .rollout.noise import SeededNoise, shifted_sigmas
from .rollout.retry import SecondTry, free_unused
from .rollout.rollout import Block, Hook, rollout
from .schedule.cue import MAX_SECONDS
from .schedule.schedule import PromptSchedule
from .steering.live import LiveControl
from .steering.script import EncodeText, script_of
from .text.cache import CachedEncoder, encode_all
from .text.umt5 import encoder_identity, load_umt5
from .vae.streaming import Decoder, StreamingDecoder
from .vae.tiled import TiledDecoder
from .weights.checkpoints import load_transformer, settle
from .weights.files import first_line, sha256_of
from .weights.lora import LoraChoice
from .weights.published import DOWNLOADS
from .weights.vae_files import load_vae

COMPILING = "compiling the layers: up to two minutes the first time, later runs find the result on disk"
LOOKED_BACK = 42  # latent frames and more that a decoder's past depends on: 38 with the Wan VAE
UNTIL_STOPPED = math.inf  # seconds of a video that a LiveControl stops, after MAX_SECONDS at the latest
Note = Callable[[str], None]  # takes a sentence for the user

logger = logging.getLogger("longlive")


@dataclass(frozen=True)
class Request:
    """What to make: `seconds` long or UNTIL_STOPPED; None stands for the preset's size and window.

    `positions`: auto (endless where a video outgrows absolute ones), absolute or endless. `past` are clean
    latents [1, C, T, H, W] of an earlier video, which this one continues; `cut_off` pixel frames at their end
    were not shown, so this one begins with them. A `state` instead of both is continued bit for bit. Times
    and `seconds` count from the end of the earlier video. `steps` are the denoising steps of a block: 4, 3
    or 2; None for those of the `state`, else all of the preset's. Fewer are faster; first blocks suffer, and
    with 2 also what a switch keeps.
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

    def uint8(self) -> np.ndarray:
        """The frames as a VideoWriter takes them."""
        return as_uint8(self.frames)


def as_uint8(frames: Tensor) -> np.ndarray:
    """Frames [F, H, W, 3] in [0, 1] as uint8 on the CPU."""
    return (frames * 255).round_().byte().contiguous().cpu().numpy()


@dataclass
class Pipeline:
    """A transformer, a decoder and a text encoder that belong together; `speed` is plain or compiled.

    `encode_ahead`, where given, encodes all prompts of a video before its rollout begins, so that a large
    encoder can be unloaded. `source` names the files it was loaded from, for a video's metadata.
    """

    preset: Preset
    model: CausalWan
    decoder: Decoder
    encode_text: EncodeText = field(repr=False)
    encode_ahead: Callable[[Iterable[str]], EncodeText] | None = field(default=None, repr=False)
    speed: str = EAGER
    source: dict[str, Any] = field(default_factory=dict)

    def plan(self, request: Request) -> "Plan":
        """Check a request and settle everything that follows from it; ValueError says what is wrong."""
        return Plan(self.preset, request)

    def run(
        self,
        plan: "Plan",
        hook: Hook | None = None,
        live: LiveControl | None = None,
        ending: Ending | None = None,
    ) -> Iterator[Chunk]:
        """Yield chunk after chunk; all frames together are round(seconds * 16), the last chunk trimmed.

        A LiveControl steers the run. An Ending has the exact state of the video once all of it was yielded.
        """
        if plan.is_until_stopped and live is None:
            raise ValueError("a video without end needs a LiveControl that stops it; give the seconds")
        hook = hook or Hook()
        tried = SecondTry(self.model.device, hook.on_note)
        decoding = tried(plan.first_block, Decoding, lambda: self._decoder_for(plan))
        due, left = decoding.due, plan.frames
        for block in self.blocks(plan, hook, live, ending):
            frames = tried(block.index, decoding.push, block)[0]
            if due is not None and len(due):
                frames = torch.cat((due, frames))
            frames, due = frames[:left], frames[left:].clone()  # a view would keep all of them in memory
            left -= len(frames)
            yield Chunk(block, frames.permute(0, 2, 3, 1))
            if live:
                live.out(block.index - plan.first_block, len(frames))
        if ending:
            ending.keep(plan.preset, plan.made_with(), block.index + 1, decoding.decoder, due)

    def _decoder_for(self, plan: "Plan") -> tuple[StreamingDecoder, Tensor | None]:
        """A decoder that has seen the earlier video, and the frames [F, 3, H, W] cut off from it."""
        decoder, request = StreamingDecoder(self.decoder), plan.request
        if request.state:
            request.state.check_dtype(self.model.dtype)
            decoder.restore(request.state.decoder)
            return decoder, request.state.cut_off.to(self.model.device)
        if request.past is not None:
            return decoder, decoder.warm(plan.past.to(self.model.device), plan.cut_off)[0]
        return decoder, None

    def blocks(
        self,
        plan: "Plan",
        hook: Hook | None = None,
        live: LiveControl | None = None,
        ending: Ending | None = None,
    ) -> Iterator[Block]:
        """Only the latents of a plan."""
        hook = hook or Hook()
        for note in plan.notes:
            hook.on_note(note)
        encode = self.encode_text
        if self.encode_ahead:
            encode = self.encode_ahead(plan.timeline.prompts)
            free_unused(self.model.device)  # an encoder leaves its size behind, in pieces of its own
        if live:
            unbounded = plan.is_until_stopped
            script = live.script(
                plan.timeline, encode, plan.blocks, plan.block_latent_frames, unbounded, plan.cut_off
            )
        else:
            script = script_of(plan.timeline, encode, plan.block_latent_frames, plan.first_block)
        script.on_switch = self.preset.on_switch
        if plan.request.state:
            script.resume(plan.request.state.script)
        if ending:
            hook = ending.watching(script, hook)
        if self.model.compile_layers(self.speed == COMPILED):
            hook.on_note(COMPILING)
        noise = SeededNoise(plan.request.seed, plan.block_shape)
        made = rollout(self.model, script, noise, plan.sigmas, plan.window, plan.blocks, plan.past, hook)
        made = self._noted(made, hook)
        return live.until_stopped(made) if live else made

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
        if self.is_until_stopped and window.window_latent_frames is None:
            raise ValueError(
                "full attention (a window of 0) needs a video of known length; "
                "choose a window such as 12, or give the seconds"
            )
        block = self.block_latent_frames = window.block_latent_frames
        self.block_shape = (1, preset.model.latent_channels, block, latent_height, latent_width)
        self.notes: list[str] = []
        self.past = state.rollout if state else self._whole_blocks(request.past)
        self.first_block, self.cut_off = self._earlier()
        past_frames = num_frames(self.first_block * block) - self.cut_off
        self.blocks = range(self.first_block, num_blocks(past_frames + self.frames, block))
        if not self.blocks:
            raise ValueError(
                f"the previous video already contains these {self.frames} frames; make the continuation "
                f"longer than {self.cut_off / FRAME_RATE:g} s"
            )
        self.window = replace(window, endless=self._is_endless(window))
        if state:
            state.check(preset, self.width, self.height, self.window)
        self.timeline = request.schedule.resolve(block, seconds, self.first_block, self.cut_off)

    def _whole_blocks(self, past: Tensor | None) -> Tensor | None:
        """The latents to continue, in whole blocks up to their end; a note if the beginning is left out."""
        if past is None:
            return None
        check_past(past, self.block_shape)
        left_out = past.shape[2] % self.block_latent_frames
        if left_out:
            seconds = num_frames(past.shape[2] - left_out) / FRAME_RATE
            self.notes.append(f"the last {seconds:.1f} s of the earlier video are what this one goes on from")
        return past[:, :, left_out:]

    def _earlier(self) -> tuple[int, int]:
        """Blocks of the earlier video, and the frames that its last one holds beyond its end."""
        request, block = self.request, self.block_latent_frames
        if request.state:
            return request.state.num_blocks, len(request.state.cut_off)
        if request.past is None:
            return 0, 0
        first_block = self.past.shape[2] // block
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

    def made_with(self) -> dict[str, int]:
        """Size, seed and steps, which a continuation must know."""
        facts = {"seed": self.request.seed, "width": self.width, "height": self.height}
        return facts | {"steps": len(self.sigmas)}

    def settings(self) -> dict[str, Any]:
        """What a video must carry to be made again with the same model."""
        return {
            "model": self.preset.name,
            "schedule": self.request.schedule.to_text(),
            "seconds": 0 if self.is_until_stopped else self.request.seconds,
            **self.made_with(),
            "window": asdict(self.window),
            "past_latent_frames": self.first_block * self.block_latent_frames,
        }


def checked_frames(seconds: float) -> int:
    """Pixel frames of a video of that length; ValueError if there can be no such video."""
    if not math.isfinite(seconds) or seconds <= 0 or seconds > MAX_SECONDS:
        raise ValueError(
            f"a video of {seconds} seconds is not possible; choose more than 0 and at most {MAX_SECONDS:g}"
        )
    return max(1, frames_of_seconds(seconds))


def check_past(past: Tensor, block_shape: tuple[int, ...]) -> None:
    """Raise ValueError unless these are latents of a video that one of blocks of that shape can continue."""
    batch, channels, block, *size = block_shape
    if past.ndim != 5 or past.shape[:2] != (batch, channels):
        raise ValueError(
            f"latents of shape {list(past.shape)} cannot be continued: expected [{batch}, {channels}, latent "
            "frames, height, width]; use the latents of one video of this model"
        )
    if list(past.shape[3:]) != size:
        (had, asked) = (
            [side * SPACE_STRIDE for side in (width, height)] for height, width in (past.shape[3:], size)
        )
        sides = " and ".join(map(str, dict.fromkeys(had)))
        raise ValueError(
            f"the earlier video is {had[0]}x{had[1]}, this one {asked[0]}x{asked[1]}; "
            f"set width and height to {sides}"
        )
    if past.shape[2] < block:
        raise ValueError(
            f"{num_frames(past.shape[2])} frames of an earlier video are not enough to go on from; "
            f"use at least {num_frames(block)}"
        )


@dataclass(frozen=True)
class ModelFiles:
    """Where the parts of a model are, and how to load them: options of the command line, by the same names.

    `model` is `mini`, a name in DOWNLOADS whose files are under `folder`, or a checkpoint. `family` is a name
    in config.RELATIVES, None to read it from the checkpoint; `precision` is of the stored weights; `tile` is
    the size of a decoder's tiles in pixels, 0 for none; `embeddings` is the folder of cached prompt
    embeddings, None for the user's cache folder.
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

    def __post_init__(self):
        choices = (one if isinstance(one, LoraChoice) else LoraChoice(Path(one)) for one in self.lora)
        object.__setattr__(self, "lora", tuple(choices))
        for name in ("vae", "text_encoder", "tokenizer", "folder", "embeddings"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(path))

    def unused_by_mini(self) -> list[str]:
        """Options that were given and mean nothing to the built-in model, which runs on the CPU."""
        given = [one.name for one in fields(self) if getattr(self, one.name) != one.default]
        used = ("model", "attention", "speed", "folder", *(["device"] if self.device == "cpu" else []))
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
            names = ", ".join((MINI.name, *DOWNLOADS))
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
    source = {"precision": "fp32", "attention": files.attention}
    return Pipeline(
        MINI, mini.transformer, mini.autoencoder, mini.encode_text, speed=files.speed, source=source
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
    for note in (*loaded.notes, *settle(loaded.transformer, files.precision, device)):
        on_note(note)
    encoder = text_encoder(files, device)
    return Pipeline(
        loaded.preset,
        loaded.transformer,
        load_decoder(files, loaded.transformer.dtype, device),
        encoder,
        lambda prompts: encode_all(encoder, prompts, files.keep_text_encoder),
        files.speed,
        files.source(),
    )


def load_decoder(files: ModelFiles, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The VAE or tiny decoder, in tiles if asked."""
    decoder = load_vae(files.vae, dtype, device)
    overlap = files.tile // 4 // SPACE_STRIDE * SPACE_STRIDE
    return TiledDecoder(decoder, files.tile, overlap, "cpu") if files.tile else decoder


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
