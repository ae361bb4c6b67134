"""What our nodes pass to each other, in addition to ComfyUI's own types."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from inspect import signature
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..longlive_core.config import MINI, Policy, Preset, WanAutoencoderConfig, WindowConfig
from ..longlive_core.fast.compiled import EAGER
from ..longlive_core.model.attention import AUTO
from ..longlive_core.model.causal_wan import CausalWan
from ..longlive_core.pipeline import Request
from ..longlive_core.schedule.schedule import PromptSchedule
from ..longlive_core.vae.layers import LatentSpace
from . import host

CATEGORY = "video/LongLive"
SCENES_KEY = "longlive_scenes"  # in a LATENT: the latent frames at which a new scene begins
FRAMES_KEY = "longlive_frames"  # in a LATENT: pixel frames that videos have of it so far
STATE_KEY = "longlive_state"  # in a LATENT: the VideoState at its end
POSITIONS = (AUTO, "absolute", "endless")

ModelType = io.Custom("LONGLIVE_MODEL")
ScheduleType = io.Custom("LONGLIVE_SCHEDULE")
WindowType = io.Custom("LONGLIVE_WINDOW")
SourceType = io.Custom("LONGLIVE_SOURCE")
ControlType = io.Custom("LONGLIVE_CONTROL")

# of inputs that few people change: pages fold them away; 0.3.64 does not know the word
ADVANCED = {"advanced": True} if "advanced" in signature(io.Int.Input.__init__).parameters else {}


def found_by(words: str) -> dict[str, list[str]]:
    """Fields of an io.Schema: what else people type (split by ", ") to find a node; 0.3.64 knows none."""
    is_known = any(known.name == "search_aliases" for known in fields(io.Schema))
    return {"search_aliases": words.split(", ")} if is_known else {}


class Samples(LatentSpace):
    """The samples of a LATENT: raw latents. ComfyUI's of Wan are raw, as its VAE makes and decodes them
    (comfy/latent_formats.py, Wan21); those of LongLive Mini are normalised: mean 0, std 1."""

    def normalised(self, raw: Tensor) -> Tensor:
        """Samples of a LATENT, as the transformer makes them; ValueError unless they are video latents."""
        if raw.ndim != 5 or raw.shape[1] != len(self.mean):
            raise ValueError(
                f"latents of shape {list(raw.shape)} are no video of this model: "
                f"expected [batch, {len(self.mean)}, latent frames, height, width], as LongLive: Stream gives"
            )
        return super().normalised(raw)


WAN_LATENTS = Samples(WanAutoencoderConfig().latent_mean, WanAutoencoderConfig().latent_std)
MINI_LATENTS = Samples((0.0,) * MINI.model.latent_channels, (1.0,) * MINI.model.latent_channels)


def latent_space(preset: Preset) -> Samples:
    """How LATENTs of a model look."""
    return MINI_LATENTS if preset.name == MINI.name else WAN_LATENTS


@dataclass(frozen=True)
class StreamModel:
    """A generator that ComfyUI keeps in memory, and the preset that it is run with.

    `precision` is of its stored weights; `source` is what a video's metadata says of its files; with the
    layers of VACE a video can be controlled.
    """

    preset: Preset
    transformer: host.Managed[CausalWan] = field(repr=False)
    precision: str
    source: Mapping[str, Any] = field(default_factory=dict)
    speed: str = EAGER
    has_vace: bool = False

    def settings(self) -> dict[str, Any]:
        """What a video's metadata says of the model."""
        return {"precision": self.precision, "speed": self.speed, **self.source}


@dataclass(frozen=True)
class EncodedSchedule:
    """Timed prompts, and the embedding [1, text tokens, text dim] of every prompt with what is in all.

    `encode` makes that of any other prompt; `has_room` says whether it may while a model samples;
    `warnings_of` has sentences about the words of a prompt.
    """

    schedule: PromptSchedule
    embeds: Mapping[str, Tensor] = field(repr=False)
    encode: Callable[[str], Tensor] = field(repr=False)
    has_room: Callable[[], bool] = field(repr=False)
    warnings_of: Callable[[str], list[str]] = field(repr=False, default=lambda _: [])

    def embeds_of(self, prompt: str) -> Tensor:
        return self.embeds[prompt] if prompt in self.embeds else self.encode(prompt)

    @property
    def text_dim(self) -> int:
        return next(iter(self.embeds.values())).shape[-1]


@dataclass(frozen=True)
class WindowChoice:
    """What a block may look back at; `on_switch` (None: the model's) is for cues that name no policy."""

    window: WindowConfig
    on_switch: Policy | None = None
    positions: str = AUTO

    def apply_to(self, request: Request, preset: Preset) -> Request:
        """The request with this window, in blocks and positions of the preset, and this policy."""
        names = ("block_latent_frames", "positions_latent_frames", "endless")
        window = replace(self.window, **{name: getattr(preset.window, name) for name in names})
        in_effect = request.state.script.prompt if request.state else None
        schedule = request.schedule
        if self.on_switch:
            schedule = schedule.with_on_switch(self.on_switch, in_effect)
        return replace(request, schedule=schedule, window=window, positions=self.positions)
