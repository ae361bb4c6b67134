"""Two sets of weights in the place of one transformer, chosen by the pass (Self Gradient Forcing+, 2026).

Its own set denoises, the `memory` set fills the KV cache: queries of the one attend to keys and values of
the other. What depends on a set, K and V of a prompt and modulations, comes in pairs.
"""

from torch import Tensor

from ..config import ModelConfig
from .attention import Attend, sdpa
from .cache import KVCache, TextCache
from .causal_wan import CausalWan, Clean, Hints, Modulations

Texts, Times = tuple[TextCache, TextCache], tuple[Modulations, Modulations]


class TwoSetWan(CausalWan):
    """A CausalWan with a second set of weights, of the same shapes, for `fill_cache`."""

    def __init__(self, config: ModelConfig, attend: Attend = sdpa, attend_text: Attend = sdpa):
        super().__init__(config, attend, attend_text)
        self.memory = CausalWan(config, attend, attend_text)

    def compile_layers(self, is_compiled: bool) -> bool:
        """As of one set: both run the same graphs."""
        is_new = super().compile_layers(is_compiled)
        self.memory._calls = self._calls
        return is_new

    def encode_text(self, embeds: Tensor) -> Texts:
        return super().encode_text(embeds), self.memory.encode_text(embeds)

    def modulations(self, timesteps: Tensor, tokens: int = 1) -> Times:
        return super().modulations(timesteps, tokens), self.memory.modulations(timesteps, tokens)

    def forward(
        self,
        latents: Tensor,
        time: Times,
        rotations: Tensor,
        cache: KVCache,
        text: Texts,
        clean: Clean | None = None,
        hints: Hints | None = None,
    ) -> Tensor:
        """As of one set, by the first halves."""
        own = clean and clean._replace(time=clean.time[0])
        return super().forward(latents, time[0], rotations, cache, text[0], own, hints)

    def fill_cache(
        self,
        latents: Tensor,
        time: Times,
        rotations: Tensor,
        cache: KVCache,
        text: Texts,
        hints: Hints | None = None,
    ) -> None:
        """As of one set, by the memory set and the second halves."""
        self.memory.fill_cache(latents, time[1], rotations, cache, text[1], hints)


def transformer_of(has_two_sets: bool) -> type[CausalWan]:
    """The class of a model with one set of weights or two."""
    return TwoSetWan if has_two_sets else CausalWan
