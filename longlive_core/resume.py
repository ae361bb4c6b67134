"""The exact state of a video at its end: taken, saved, loaded, checked; a run resumes from it bit for bit."""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .config import CONTEXT_CHANNELS, ModelConfig, Preset, WindowConfig
from .geometry import SPACE_STRIDE, latent_size, num_frames, tokens_per_frame
from .output.growing import write_whole
from .rollout.rollout import Block, Hook, Recorded
from .rollout.scene import RolloutState, Scene
from .steering.script import PromptScript, ScriptState
from .vae.streaming import TENSOR, DecoderState, StreamingDecoder

METADATA_KEY, CHECKSUM_KEY = "longlive_state", "longlive_checksum"  # older files have no check sum
FORMAT = 1
_LATER = ("source_start", "control_start", "cue_seed")  # a file has those that are not None
_HAS_MADE = "has_made"  # that of a RolloutState; a file has it where it is False
_FIELDS = ("model", "dtype", "width", "height", "num_frames", "num_blocks", "seed", "steps")
_KINDS = {  # of all that a file says of a state; older ones have no seed, no steps and nothing _LATER
    **dict.fromkeys(("format", "width", "height", "num_frames", "num_blocks"), (int,)),
    **dict.fromkeys(("end", "sink_position"), (int,)),
    **dict.fromkeys(("model", "dtype", "prompt"), (str,)),
    **dict.fromkeys(("blend", "decoder"), (list,)),
    **dict.fromkeys(("seed", "steps", *_LATER), (int, NoneType)),
    "window": (dict,),
    _HAS_MADE: (bool, NoneType),
}
STATES_BYTES = 4 << 30  # of a run that can be taken back: one state at 832x480, of Mini those of hours
MOST_TIMES = 50  # the time between two states, in that of taking one
_MAX_BLEND_BLOCKS = 240  # 60 s, in blocks of one latent frame


Facts = Callable[[int], Mapping[str, int | None]]  # of a block


@dataclass(frozen=True)
class VideoState:
    """The state at the end of `num_frames` pixel frames in `num_blocks` blocks by the model of that name.

    `cut_off` [F, 3, H, W] in [0, 1] are the frames of the last block beyond the end. All tensors are on the
    CPU, never written to, and together about as large as the KV cache. `seed` and `steps` may be None, as may
    `source_start` and `control_start`: which pixel frame the first of a source or control stands at; and
    `cue_seed`, the seed of a cue that was in effect at the end.
    """

    model: str
    dtype: str
    width: int
    height: int
    num_frames: int
    num_blocks: int
    rollout: RolloutState
    script: ScriptState
    decoder: DecoderState
    cut_off: Tensor = field(repr=False)
    seed: int | None = None
    steps: int | None = None
    source_start: int | None = None
    control_start: int | None = None
    cue_seed: int | None = None

    @property
    def num_bytes(self) -> int:
        """What its tensors take."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    @property
    def newest_latents(self) -> Tensor:
        """Clean latents [1, C, T, H, W] of the last block."""
        return self.rollout.tensors["recent"][:, :, -self.rollout.window.block_latent_frames :]

    @property
    def scene_block(self) -> int:
        """The block in which the newest scene began."""
        return self.num_blocks - self.rollout.end // self.rollout.window.block_latent_frames

    def check(self, preset: Preset, width: int, height: int, window: WindowConfig) -> None:
        """Raise ValueError unless a video of this model, size and window can continue from here."""
        size = f"{self.width}x{self.height}"
        had = {"model": self.model, "size": size, **asdict(self.rollout.window)}
        _check_same(had, {"model": preset.name, "size": f"{width}x{height}", **asdict(window)})
        found = {name: [*tensor.shape] for name, tensor in self._tensors().items() if "decoder." not in name}
        expected = self._shapes(preset.model)
        for name in sorted({*found, *expected}):
            if found.get(name) != expected.get(name):
                raise ValueError(
                    f"the state of the earlier video is damaged: {name} is {found.get(name)}, and this model "
                    f"has {expected.get(name)}; choose another state, or continue from the latents alone"
                )

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Raise ValueError unless the earlier video was computed in this dtype."""
        _check_same({"dtype": self.dtype}, {"dtype": str(dtype)})

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; an earlier one stays until it is whole. Raises OSError if it cannot."""
        facts = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in _FIELDS},
            "window": asdict(self.rollout.window),
            "end": self.rollout.end,
            "sink_position": self.rollout.sink_position,
            "prompt": self.script.prompt,
            "blend": [self.script.done, self.script.of],
            "decoder": [self.decoder.shape, self.decoder.device],
        }
        later = {name: getattr(self, name) for name in _LATER}
        facts |= {name: number for name, number in later.items() if number is not None}
        facts |= {} if self.rollout.has_made else {_HAS_MADE: False}
        tensors, text = self._tensors(), json.dumps(facts, ensure_ascii=False)
        metadata = {METADATA_KEY: text, CHECKSUM_KEY: _checksum(text, tensors)}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}

        def make(part: Path) -> None:
            part.touch()
            mode = part.stat().st_mode
            save_file(contiguous, part, metadata)
            part.chmod(mode)  # safetensors gives its files 0600

        try:
            write_whole(Path(os.path.realpath(path)), make)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"the state cannot be written to {path} ({reason})") from error

    @classmethod
    def load(cls, path: str | Path) -> "VideoState":
        """Read what `save` wrote. Raises ValueError for any other file, and where a part of it is damaged."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if METADATA_KEY not in metadata:
                    raise ValueError(f"{path} is not the state of a video; choose a file written by --state")
                # Copies: a product's last bits depend on the alignment, which in a mapped file may be any.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read as the state of a video ({error})") from error
        try:
            text = metadata[METADATA_KEY]
            if metadata.get(CHECKSUM_KEY) not in (None, _checksum(text, tensors)):
                raise ValueError("the check sum is wrong")
            state = cls._of(json.loads(text), tensors)
            state._check()
        except Exception as error:  # a field may be anything
            reason = error if isinstance(error, ValueError) else type(error).__name__
            raise ValueError(
                f"{path} is the state of a video, but parts of it are damaged ({reason}); make it again"
            ) from error
        return state

    @classmethod
    def _of(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "VideoState":
        for name, kinds in _KINDS.items():
            if type(facts.get(name)) not in kinds:
                raise ValueError(f"its {name} is no {kinds[0].__name__}")
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']}, and {FORMAT} is read")
        groups: dict[str, dict[str, Tensor]] = {"rollout": {}, "script": {}, "decoder": {}, "video": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        window, (shape, device) = WindowConfig(**facts["window"]), facts["decoder"]
        past = tuple(groups["decoder"][str(index)] for index in range(len(groups["decoder"])))
        return cls(
            **{name: facts.get(name) for name in _FIELDS},
            rollout=RolloutState(
                window,
                facts["end"],
                facts["sink_position"],
                groups["rollout"],
                facts.get(_HAS_MADE) is not False,
            ),
            script=ScriptState(facts["prompt"], groups["script"], *facts["blend"]),
            decoder=DecoderState(shape, past, device),
            cut_off=groups["video"]["cut_off"],
            **{name: facts.get(name) for name in _LATER},
        )

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors, by their names in a file."""
        tensors = {f"rollout.{name}": tensor for name, tensor in self.rollout.tensors.items()}
        tensors |= {f"script.{name}": tensor for name, tensor in self.script.tensors.items()}
        tensors |= {f"decoder.{index}": tensor for index, tensor in enumerate(self.decoder.tensors)}
        return tensors | {"video.cut_off": self.cut_off}

    def _check(self) -> None:
        """Raise ValueError unless all numbers are of one video, and every tensor is finite."""
        rollout, script, window = self.rollout, self.script, self.rollout.window
        shape, made = tree_leaves(self.decoder.shape), self.num_blocks * window.block_latent_frames
        span = window.positions_latent_frames or window.window_latent_frames or rollout.end
        moved = max(0, rollout.end - span) if window.endless else 0
        latent_size(self.width, self.height)
        kinds, steps = [type(value) for value in astuple(window)], (script.done, script.of)
        is_window = kinds[:2] + kinds[3:5] == [int, int, bool, bool]
        names = {"embeds", "start", "target"} if script.done < script.of else {"embeds"}
        right = {
            "window": is_window and {kinds[2], kinds[5]} <= {int, NoneType},
            "num_frames": 0 < self.num_frames == num_frames(made) - len(self.cut_off),
            "end": 0 < rollout.end <= made and rollout.end % window.block_latent_frames == 0,
            "sink_position": rollout.sink_position == moved,
            "blend": {*map(type, steps)} == {int} and 0 <= steps[0] <= steps[1] <= _MAX_BLEND_BLOCKS,
            "script": {*script.tensors} == names and script.tensors["embeds"].ndim == 3,
            "decoder": {*shape} <= {TENSOR, None} and shape.count(TENSOR) == len(self.decoder.tensors) > 0,
            **{name: _is_finite(tensor) for name, tensor in self._tensors().items()},
        }
        if wrong := [name for name, is_right in right.items() if not is_right]:
            raise ValueError(f"its {wrong[0]} cannot be right")

    def _shapes(self, model: ModelConfig) -> dict[str, list[int]]:
        """The shape of every tensor but the decoder's, as a model leaves them."""
        end, window = self.rollout.end, self.rollout.window
        height, width = latent_size(self.width, self.height)
        frames = min(window.window_latent_frames or end, end)
        sink = min(window.sink_latent_frames, frames) if window.window_latent_frames else 0
        tokens, head = tokens_per_frame(height, width), [model.num_heads, model.head_dim]
        layer = {name: [1, frames * tokens, *head] for name in ("keys", "values")}
        if window.has_small_cache:
            layer |= {f"{name}_scale": [1, frames * tokens, head[0], 1] for name in ("keys", "values")}
        if window.endless:
            layer["sink_home"] = [1, sink * tokens, *head]
        text = [1, self.script.tensors["embeds"].shape[1], model.text_dim]
        control = [1, CONTEXT_CHANNELS, frames, height, width]
        return {
            "rollout.embeds": text,
            **({} if self.control_start is None else {"rollout.contexts": control}),
            "rollout.recent": [1, model.latent_channels, frames, height, width],
            "video.cut_off": [len(self.cut_off), 3, self.height, self.width],
            **{f"script.{name}": text for name in self.script.tensors},
            **{f"rollout.layers.{i}.{n}": s for i in range(model.num_layers) for n, s in layer.items()},
        }


def _is_finite(tensor: Tensor) -> bool:
    wide = tensor.float() if tensor.itemsize == 1 else tensor
    return tensor.is_floating_point() and bool(wide.isfinite().all())


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of a state's metadata and of all tensors, in order of their names."""
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        crc = zlib.crc32(f"{name} {tensor.dtype} {[*tensor.shape]}".encode(), crc)
        crc = zlib.crc32(tensor.flatten().view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def _check_same(had: dict[str, Any], asked: dict[str, Any]) -> None:
    names = [name for name in had if had[name] != asked[name]]
    if names:
        changes = ", ".join(f"{name.replace('_', ' ')} {had[name]} (now {asked[name]})" for name in names)
        remedy = "leave this as it was, or continue from the latents alone"
        raise ValueError(f"the earlier video was made with {changes}; {remedy}")


@dataclass(frozen=True)
class Restart:
    """Where a video that was begun goes on: after `state`, or where it began; `recorded` blocks are kept.

    Blocks `before` the state, if there are any, are decoded once more. Block `num_blocks` is the first to be
    made: what is sent earlier takes effect there.
    """

    recorded: Recorded = lambda block: None
    state: VideoState | None = None
    before: Iterator[Block] | None = None
    num_blocks: int = 0


class StateTaker:
    """Given to a run, it can take the exact state after the newest block."""

    _scene: Scene | None = None
    _script: PromptScript | None = None
    _facts: Facts | None = None
    _decoder: Callable[[], StreamingDecoder]

    def begin(self, preset: Preset, facts: Facts, decoder: Callable[[], StreamingDecoder]) -> None:
        """The run begins: `facts` of a block are fields of a VideoState, `decoder` is the one in use."""
        self._preset, self._facts, self._decoder = preset, facts, decoder
        self._scene = None  # of the time before the run was taken back: it takes memory

    def release(self) -> None:
        """The run is over: hold none of its memory."""
        self._scene = self._script = self._facts = self._decoder = None

    def watching(self, script: PromptScript, hook: Hook) -> Hook:
        """A hook that passes every event on to `hook`, and watches; the run follows `script`."""

        def on_open(scene: Scene) -> None:
            self._scene = scene
            hook.on_open(scene)

        self._script, watching = script, Hook()
        vars(watching).update({name: getattr(hook, name) for name in vars(Hook) if name.startswith("on_")})
        watching.on_open = on_open
        return watching

    def _state(self, num_blocks: int, cut_off: Tensor) -> VideoState:
        """The state after so many blocks, of which the frames `cut_off` [F, 3, H, W] are not in the video."""
        script = self._script.state()
        latent_frames = num_blocks * self._scene.cache.window.block_latent_frames
        return VideoState(
            model=self._preset.name,
            dtype=str(self._scene.model.dtype),
            num_frames=num_frames(latent_frames) - len(cut_off),
            num_blocks=num_blocks,
            rollout=self._scene.state(script.tensors["embeds"]),
            script=script,
            decoder=self._decoder().state(),
            cut_off=cut_off.to("cpu", copy=True),
            **self._facts(num_blocks - 1),
        )


class Ending(StateTaker):
    """Has the exact `state` at the end of a run once that is complete."""

    state: VideoState | None = None

    def keep(self, num_blocks: int, cut_off: Tensor) -> None:
        """The run is complete."""
        self.state = self._state(num_blocks, cut_off)


class Snapshots(StateTaker):
    """Gives `take` the exact state in mid-video after each block whose number `is_due`."""

    def __init__(self, is_due: Callable[[int], bool], take: Callable[[VideoState], None]):
        self._is_due, self._take = is_due, take

    def watching(self, script: PromptScript, hook: Hook) -> Hook:
        watching = super().watching(script, hook)

        def on_commit(block: int, *cache: Any) -> None:
            hook.on_commit(block, *cache)
            if self._is_due(block):
                self._take(self._state(block + 1, self._none_cut_off()))

        watching.on_commit = on_commit
        return watching

    def _none_cut_off(self) -> Tensor:
        height, width = (SPACE_STRIDE * side for side in (self._scene.height, self._scene.width))
        return torch.empty(0, 3, height, width)


class Disk(Protocol):
    """Where blocks are written as they are made, such as a Journal."""

    def has(self, index: int) -> bool:
        """Whether a block can be read."""

    def block(self, index: int) -> Block:
        """A block, read from there. Raises OSError if it cannot be."""


class Rewind(Snapshots):
    """Keeps what a run needs to go back: all its `blocks`, by number, and the newest states of those taken.

    A state is taken where `can_be_cut` says that the consumer's video can be cut, unless that would cost more
    than a fiftieth of the run's time; those of more than `budget` bytes are forgotten. `on_back` is called
    when the run goes back, with the number of its frames that stay; the next ones come after these. Each
    state that is taken is also given to `on_state`. Of a block that `disk` has nothing is kept in RAM: it is
    None, and read when it is needed.
    """

    def __init__(
        self,
        can_be_cut: Callable[[], bool] = lambda: True,
        on_back: Callable[[int], None] = lambda num_frames: None,
        budget: int = STATES_BYTES,
        on_state: Callable[[VideoState], None] = lambda state: None,
        clock: Callable[[], float] = time.monotonic,
        disk: Disk | None = None,
    ):
        super().__init__(self._is_worth_it, self._keep)
        self._on_state, self._disk = on_state, disk
        self.blocks: dict[int, Block | None] = {}
        self.states: list[VideoState] = []
        self._can_be_cut, self.on_back, self._budget, self._clock = can_be_cut, on_back, budget, clock
        self._taken, self._cost = clock(), 0.0

    def add(self, block: Block) -> None:
        """A block is made; its latents are kept on the CPU, until they are on disk."""
        if block.index not in self.blocks:
            self.blocks[block.index] = replace(block, latents=block.latents.cpu())
        for index in reversed(self.blocks) if self._disk else ():
            if self.blocks[index] is None:  # and so are all before
                break
            if self._disk.has(index):
                self.blocks[index] = None

    def block(self, index: int) -> Block:
        """One of the blocks, from RAM or from disk."""
        return self.blocks[index] or self._disk.block(index)

    def made(self) -> Iterator[Block]:
        """All blocks, one after the other."""
        return map(self.block, self.blocks)

    def take_over(self, earlier: "Rewind", num_blocks: int) -> None:
        """Begin with the first blocks of another run, which are the same in this one."""
        self.blocks = {block.index: block for block in islice(earlier.made(), num_blocks)}
        end = max(self.blocks, default=-1) + 1
        self.states = [state for state in earlier.states if state.num_blocks <= end]

    def first_restart(self) -> Restart:
        """Where a run goes on that took blocks over: all of them are decoded once more."""
        num_blocks = max(self.blocks, default=-1) + 1
        restart = self.restart(num_blocks)
        end = restart.state.num_blocks if restart.state else 0
        before = map(self.block, [index for index in self.blocks if index < end])
        return replace(restart, before=before if end else None, num_blocks=num_blocks)

    def restart(self, block: int) -> Restart:
        """Where a run goes on that goes back to a block; what was made from it on is forgotten."""
        self.blocks = {index: made for index, made in self.blocks.items() if index < block}
        self.states = [state for state in self.states if state.num_blocks <= block]
        return Restart(self._latents, self.states[-1] if self.states else None)

    def _latents(self, block: int) -> Tensor | None:
        return self.block(block).latents if block in self.blocks else None

    def _is_worth_it(self, block: int) -> bool:
        is_soon = self._clock() - self._taken < MOST_TIMES * self._cost
        return self._can_be_cut() and not is_soon and self._scene.num_bytes <= self._budget

    def _state(self, num_blocks: int, cut_off: Tensor) -> VideoState:
        self._taken = self._clock()
        state = super()._state(num_blocks, cut_off)
        self._cost = self._clock() - self._taken
        return state

    def _keep(self, state: VideoState) -> None:
        self.states = [*(had for had in self.states if had.num_blocks < state.num_blocks), state]
        while sum(one.num_bytes for one in self.states) > self._budget:
            del self.states[0]
        self._on_state(state)
