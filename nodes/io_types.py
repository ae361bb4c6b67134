"""What our nodes pass to each other beside the host's own types."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from comfy_api.latest import io
from torch import Tensor

from ..longlive_core.config import Preset, WindowConfig
from ..longlive_core.model.causal_wan import CausalWan
from ..longlive_core.rollout.prompts import Policy, PromptSchedule

CATEGORY = "LongLive"
SCENES_KEY = "longlive_scenes"  # in a LATENT: the latent frames at which a new scene begins
POSITIONS = ("auto", "absolute", "endless")

ModelType = io.Custom("LONGLIVE_MODEL")
ScheduleType = io.Custom("LONGLIVE_SCHEDULE")
WindowType = io.Custom("LONGLIVE_WINDOW")


@dataclass(frozen=True)
class StreamModel:
    """A generator on its device, the preset it was built from, and the name of its attention backend."""

    preset: Preset
    transformer: CausalWan = field(repr=False)
    attention: str


@dataclass(frozen=True)
class EncodedSchedule:
    """Timed prompts, and the embedding [1, text tokens, text dim] of every prompt."""

    schedule: PromptSchedule
    embeds: Mapping[str, Tensor] = field(repr=False)

    def encode(self, prompt: str) -> Tensor:
        return self.embeds[prompt]

    @property
    def text_dim(self) -> int:
        return next(iter(self.embeds.values())).shape[-1]


@dataclass(frozen=True)
class WindowChoice:
    """What a block may look back at, and what happens to it at cues that name no policy."""

    window: WindowConfig
    on_switch: Policy = Policy.RECACHE
    positions: str = "auto"

    def apply_to(self, schedule: PromptSchedule) -> PromptSchedule:
        """The schedule with this policy wherever its cues leave it at the usual one."""
        cues = (replace(c, policy=self.on_switch) if c.policy is Policy.RECACHE else c for c in schedule.cues)
        return replace(schedule, cues=tuple(cues))
