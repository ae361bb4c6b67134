"""The exact state of a finished video, to go on from as if it had not ended: kept, checked, saved, loaded."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import Preset, WindowConfig
from .geometry import num_frames
from .rollout.rollout import Hook
from .rollout.scene import RolloutState, Scene
from .steering.script import PromptScript, ScriptState
from .vae.streaming import DecoderState, StreamingDecoder

METADATA_KEY = "longlive_state"
FORMAT = 1


@dataclass(frozen=True)
class VideoState:
    """A video of `num_frames` pixel frames, made in `num_blocks` blocks by the model of that name.

    `cut_off` [F, 3, H, W] in [0, 1] are the frames that its last block holds beyond its end. All tensors are
    on the CPU and never written to; in all they are about as large as the KV cache. `seed` and `steps` are
    what it was made with; None in files that are older than these.
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

    @property
    def newest_latents(self) -> Tensor:
        """Clean latents [1, C, T, H, W] of the last block."""
        return self.rollout.tensors["recent"][:, :, -self.rollout.window.block_latent_frames :]

    def check(self, preset: Preset, width: int, height: int, window: WindowConfig) -> None:
        """ValueError unless a video of this model, size and window can go on from here."""
        facts = (
            ("made by {}, and the model is {}", self.model, preset.name),
            ("of {} pixels, and {} are asked for", f"{self.width}x{self.height}", f"{width}x{height}"),
            ("made with a {}, and a {} is asked for", spelled(self.rollout.window), spelled(window)),
        )
        for words, had, asked in facts:
            if had != asked:
                raise ValueError(f"the earlier video is {words.format(had, asked)}; {REMEDY}")

    def check_dtype(self, dtype: torch.dtype) -> None:
        """ValueError unless the model computes in the dtype it had."""
        if self.dtype != str(dtype):
            raise ValueError(
                f"the earlier video was made in {self.dtype}, and the model runs in {dtype}; {REMEDY}"
            )

    def save(self, path: str | Path) -> None:
        """Write it as safetensors. Raises OSError when it cannot be written."""
        facts = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in (*_PLAIN, *_MADE_WITH)},
            "window": asdict(self.rollout.window),
            "end": self.rollout.end,
            "sink_position": self.rollout.sink_position,
            "prompt": self.script.prompt,
            "blend": [self.script.done, self.script.of],
            "decoder": [self.decoder.shape, self.decoder.device],
        }
        groups = {
            "rollout": self.rollout.tensors,
            "script": self.script.tensors,
            "video": {"cut_off": self.cut_off},
        }
        groups["decoder"] = {str(index): tensor for index, tensor in enumerate(self.decoder.tensors)}
        named = ((f"{group}.{name}", t) for group, parts in groups.items() for name, t in parts.items())
        tensors = {name: tensor.contiguous() for name, tensor in named}
        try:
            save_as_any_file(tensors, path, {METADATA_KEY: json.dumps(facts, ensure_ascii=False)})
        except SafetensorError as error:
            raise OSError(f"the state cannot be written to {path} ({error})") from error

    @classmethod
    def load(cls, path: str | Path) -> "VideoState":
        """What `save` wrote; ValueError in one sentence for any other file."""
        facts, tensors = _read(Path(path))
        try:
            return cls._of(facts, tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is the state of a video, but parts of it are damaged") from error

    @classmethod
    def _of(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "VideoState":
        groups: dict[str, dict[str, Tensor]] = {"rollout": {}, "script": {}, "video": {}, "decoder": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        shape, device = facts["decoder"]
        past = tuple(groups["decoder"][str(index)] for index in range(len(groups["decoder"])))
        window = WindowConfig(**facts["window"])
        return cls(
            **{name: facts[name] for name in _PLAIN},
            **{name: facts.get(name) for name in _MADE_WITH},
            rollout=RolloutState(window, facts["end"], facts["sink_position"], groups["rollout"]),
            script=ScriptState(facts["prompt"], groups["script"], *facts["blend"]),
            decoder=DecoderState(shape, past, device),
            cut_off=groups["video"]["cut_off"],
        )


_PLAIN = ("model", "dtype", "width", "height", "num_frames", "num_blocks")
_MADE_WITH = ("seed", "steps")
REMEDY = "leave these as they were, or continue from the latents alone"


def save_as_any_file(tensors: dict[str, Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Tensors into a file with the permissions of any new file, or those it had; safetensors gives it 0600.

    A link stays one: what it names is written.
    """
    place = Path(os.path.realpath(path))
    was_there = place.exists()
    place.open("ab").close()
    mode = place.stat().st_mode
    try:
        save_file(tensors, place, metadata)
        place.chmod(mode)
    except BaseException:
        if not was_there:
            place.unlink(missing_ok=True)
        raise


def spelled(window: WindowConfig) -> str:
    """A window in words."""
    parts = [f"window of {window.window_latent_frames or 'everything'}", f"sink {window.sink_latent_frames}"]
    parts += [f"blocks of {window.block_latent_frames}", "endless" if window.endless else "absolute"]
    return ", ".join(parts) + " positions" + ", fp8 cache" * window.has_small_cache


def _read(path: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as the state of a video ({error})") from error
    if facts.get("format") != FORMAT:
        raise ValueError(f"{path} is not the state of a video; choose a file that --state has written")
    return facts, tensors


class Ending:
    """Handed to a run that is to leave its exact state: `state`, once the run has come to its end."""

    def __init__(self):
        self.state: VideoState | None = None
        self._scene: Scene | None = None
        self._script: PromptScript | None = None

    def watching(self, script: PromptScript, hook: Hook | None) -> Hook:
        """The same hook, from which this learns the scene; the run is on that script."""
        self._script = script
        return _SceneHook(self._set_scene, hook or Hook())

    def _set_scene(self, scene: Scene) -> None:
        self._scene = scene

    def keep(
        self,
        preset: Preset,
        made_with: Mapping[str, int],
        num_blocks: int,
        decoder: StreamingDecoder,
        cut_off: Tensor,
    ) -> None:
        """The run of `num_blocks` in all has ended, `cut_off` [F, 3, H, W] frames before its last block.

        It was `made_with` that width, height, seed and so many steps.
        """
        script = self._script.state()
        latent_frames = num_blocks * self._scene.cache.window.block_latent_frames
        self.state = VideoState(
            model=preset.name,
            dtype=str(self._scene.model.dtype),
            num_frames=num_frames(latent_frames) - len(cut_off),
            num_blocks=num_blocks,
            rollout=self._scene.state(script.tensors["embeds"]),
            script=script,
            decoder=decoder.state(),
            cut_off=cut_off.to("cpu", copy=True),
            **made_with,
        )
        self._scene = self._script = None


class _SceneHook(Hook):
    """A hook that reports the scene it sees and passes every event on to another hook."""

    def __init__(self, tell: Callable[[Scene], None], inner: Hook):
        for event in (name for name in vars(Hook) if name.startswith("on_")):
            setattr(self, event, getattr(inner, event))
        self.on_open = lambda scene: (tell(scene), inner.on_open(scene))
