"""The exact state of a video at its end: taken, saved, loaded, checked; a run resumes from it bit for bit."""

import json
import os
from collections.abc import Mapping
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
_REQUIRED = ("model", "dtype", "width", "height", "num_frames", "num_blocks")
_OPTIONAL = ("seed", "steps")  # older files have none


@dataclass(frozen=True)
class VideoState:
    """The state at the end of `num_frames` pixel frames in `num_blocks` blocks by the model of that name.

    `cut_off` [F, 3, H, W] in [0, 1] are the frames of the last block beyond the end. All tensors are on the
    CPU, never written to, and together about as large as the KV cache. `seed` and `steps` may be None.
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
        """Raise ValueError unless a video of this model, size and window can continue from here."""
        size = f"{self.width}x{self.height}"
        had = {"model": self.model, "size": size, **asdict(self.rollout.window)}
        _check_same(had, {"model": preset.name, "size": f"{width}x{height}", **asdict(window)})

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Raise ValueError unless the earlier video was computed in this dtype."""
        _check_same({"dtype": self.dtype}, {"dtype": str(dtype)})

    def save(self, path: str | Path) -> None:
        """Write a safetensors file. Raises OSError if it cannot be written."""
        facts = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in (*_REQUIRED, *_OPTIONAL)},
            "window": asdict(self.rollout.window),
            "end": self.rollout.end,
            "sink_position": self.rollout.sink_position,
            "prompt": self.script.prompt,
            "blend": [self.script.done, self.script.of],
            "decoder": [self.decoder.shape, self.decoder.device],
        }
        tensors = {f"rollout.{name}": tensor for name, tensor in self.rollout.tensors.items()}
        tensors |= {f"script.{name}": tensor for name, tensor in self.script.tensors.items()}
        tensors |= {f"decoder.{index}": tensor for index, tensor in enumerate(self.decoder.tensors)}
        tensors["video.cut_off"] = self.cut_off
        try:
            _save_file(tensors, path, {METADATA_KEY: json.dumps(facts, ensure_ascii=False)})
        except SafetensorError as error:
            raise OSError(f"the state cannot be written to {path} ({error})") from error

    @classmethod
    def load(cls, path: str | Path) -> "VideoState":
        """Read what `save` wrote. Raises ValueError for any other file."""
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
                # Copies: a product's last bits depend on the alignment, which in a mapped file may be any.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read as the state of a video ({error})") from error
        if facts.get("format") != FORMAT:
            raise ValueError(f"{path} is not the state of a video; choose a file written by --state")
        try:
            return cls._of(facts, tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is the state of a video, but parts of it are damaged") from error

    @classmethod
    def _of(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "VideoState":
        groups: dict[str, dict[str, Tensor]] = {"rollout": {}, "script": {}, "decoder": {}, "video": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        window, (shape, device) = WindowConfig(**facts["window"]), facts["decoder"]
        past = tuple(groups["decoder"][str(index)] for index in range(len(groups["decoder"])))
        return cls(
            **{name: facts[name] for name in _REQUIRED},
            **{name: facts.get(name) for name in _OPTIONAL},
            rollout=RolloutState(window, facts["end"], facts["sink_position"], groups["rollout"]),
            script=ScriptState(facts["prompt"], groups["script"], *facts["blend"]),
            decoder=DecoderState(shape, past, device),
            cut_off=groups["video"]["cut_off"],
        )


def _check_same(had: dict[str, Any], asked: dict[str, Any]) -> None:
    names = [name for name in had if had[name] != asked[name]]
    if names:
        changes = ", ".join(f"{name.replace('_', ' ')} {had[name]} (now {asked[name]})" for name in names)
        remedy = "leave this as it was, or continue from the latents alone"
        raise ValueError(f"the earlier video was made with {changes}; {remedy}")


def _save_file(tensors: dict[str, Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """safetensors' save_file, which would replace a link and give any file the permissions 0600."""
    target = Path(os.path.realpath(path))
    existed = target.exists()
    target.open("ab").close()
    mode = target.stat().st_mode
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target, metadata)
        target.chmod(mode)
    except BaseException:
        if not existed:
            target.unlink(missing_ok=True)
        raise


class Ending:
    """Given to a run, it has the exact `state` at the end once the run is complete."""

    state: VideoState | None = None
    _scene: Scene | None = None
    _script: PromptScript | None = None

    def watching(self, script: PromptScript, hook: Hook) -> Hook:
        """A hook that passes every event on to `hook` and keeps the scene; the run follows `script`."""

        def on_open(scene: Scene) -> None:
            self._scene = scene
            hook.on_open(scene)

        self._script, watching = script, Hook()
        vars(watching).update({name: getattr(hook, name) for name in vars(Hook) if name.startswith("on_")})
        watching.on_open = on_open
        return watching

    def keep(
        self,
        preset: Preset,
        made_with: Mapping[str, int],
        num_blocks: int,
        decoder: StreamingDecoder,
        cut_off: Tensor,
    ) -> None:
        """Take the state after `num_blocks`; `made_with` and `cut_off` are fields of a VideoState."""
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
