"""The exact state of a rollout after a block: what another one needs to go on as if there had been no end."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..config import WindowConfig


@dataclass(frozen=True)
class RolloutState:
    """`end` latent frames are made since the scene began; the sink stands at RoPE position `sink_position`.

    `tensors`, on the CPU: the prompt in effect `embeds` [1 or B, text tokens, text dim], the newest clean
    latents `recent` [B, C, T, H, W], and `layers.N.keys` and the like, written by a KVCache.
    """

    window: WindowConfig
    end: int
    sink_position: int
    tensors: Mapping[str, Tensor] = field(repr=False)
