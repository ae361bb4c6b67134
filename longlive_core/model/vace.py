"""VACE (arXiv 2503.07598): layers next to the transformer's that turn control into hints, in every pass.

They keep no keys and values: in a pass they see the latent frames whose keys and values that pass writes, and
the references before them. What depends on a prompt or a noise level is theirs too.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..config import CONTEXT_CHANNELS, ModelConfig, WindowConfig
from ..geometry import PATCH
from .attention import Attend, sdpa
from .cache import KVCache, LayerCache, LayerText, Opening
from .causal_wan import CausalWan, Clean, Hints, patches
from .layers import Layer, Linear, Modulation

Times = tuple[object, list[list[Modulation]]]  # the transformer's own, and of the VACE layers for each set
Texts = tuple[object, list[list[LayerText]]]


class VaceLayer(Layer):
    """A transformer layer whose tokens, through `after_proj`, are a hint; the first has a `before_proj`."""

    def __init__(self, config: ModelConfig, attend: Attend, attend_text: Attend, is_first: bool):
        super().__init__(config, attend, attend_text)
        self.before_proj = Linear(config.dim, config.dim) if is_first else None
        self.after_proj = Linear(config.dim, config.dim)


class Vace(nn.Module):
    """The layers and the embedding of their context; hint n is added after layer places[n] of the model."""

    def __init__(
        self, config: ModelConfig, places: Sequence[int], attend: Attend = sdpa, attend_text: Attend = sdpa
    ):
        super().__init__()
        self.config, self.places = config, tuple(places)
        self.patch_embedding = Linear(CONTEXT_CHANNELS * PATCH**2, config.dim)
        self.layers = nn.ModuleList(
            VaceLayer(config, attend, attend_text, is_first=not index) for index in range(len(places))
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic, as the transformer's."""
        return self.patch_embedding.bias.dtype

    def embedded(self, context: Tensor) -> Tensor:
        """Context [B, 96, T, H, W] -> [B, tokens, E], to which the embedded latents are added."""
        context = context.to(self.patch_embedding.weight.device, self.dtype)
        return self.layers[0].before_proj(self.patch_embedding(patches(context)))


class ControlledWan:
    """A transformer whose `vace` gives hints, in the place of the transformer of a rollout.

    `context_of(block, opens a scene, given)` gives the context [B or 1, 96, T, H, W] of a block that begins
    with `given` latents or None, its `of_given(latents)` that of an earlier video.
    `references` [B or 1, 96, R, H, W] stand before the latent frames of each pass, in the VACE layers only:
    their latents are zero and their hints are dropped. With `scale` 0 nothing is added, and nothing computed.
    """

    def __init__(
        self,
        model: CausalWan,
        context_of: Callable[[int, bool, Tensor | None], Tensor],
        scale: float = 1.0,
        references: Tensor | None = None,
    ):
        self.model, self.context_of, self.scale = model, context_of, scale
        self._layers = model.vace.layers if scale else []
        self._sets = list(dict.fromkeys((model, getattr(model, "memory", model))))
        self._references = references
        self._rotations: dict[tuple[int, ...], Tensor] = {}
        self.config, self.device, self.dtype = model.config, model.device, model.dtype

    def encode_text(self, embeds: Tensor) -> Texts:
        """As of the transformer, and of the VACE layers."""
        return self.model.encode_text(embeds), [one.text_of(self._layers, embeds) for one in self._sets]

    def rotations(self, positions: Tensor, latent_height: int, latent_width: int) -> Tensor:
        """As of the transformer; the VACE layers count each pass from 0."""
        return self.model.rotations(positions, latent_height, latent_width)

    def modulations(self, timesteps: Tensor, tokens: int = 1) -> Times:
        """As of the transformer, and of the VACE layers."""
        own = self.model.modulations(timesteps, tokens)
        return own, [one.modulations_of(self._layers, timesteps, tokens)[0] for one in self._sets]

    def __call__(
        self,
        latents: Tensor,
        time: Times,
        rotations: Tensor,
        cache: KVCache,
        text: Texts,
        clean: Clean | None,
        context: Tensor,
    ) -> Tensor:
        """As of the transformer, under the `context` [B or 1, 96, T, H, W] of these latents."""
        own, at_zero = (clean._replace(time=clean.time[0]), clean.time[1][0]) if clean else (None, [])
        hints = self._hints(context, text[1][0], time[1][0], at_zero)
        return self.model(latents, time[0], rotations, cache, text[0], own, hints)

    def fill_cache(
        self, latents: Tensor, time: Times, rotations: Tensor, cache: KVCache, text: Texts, context: Tensor
    ) -> None:
        """The same."""
        hints = self._hints(context, text[1][-1], time[1][-1])
        self.model.fill_cache(latents, time[0], rotations, cache, text[0], hints)

    def _hints(
        self,
        context: Tensor,
        text: list[LayerText],
        time: list[Modulation],
        at_zero: Sequence[Modulation] = (),
    ) -> Hints | None:
        """What the VACE layers add to a pass; `at_zero` are the modulations of its clean frames."""
        if not self.scale:
            return None
        vace, references = self.model.vace, self._references

        def made(run: Callable[..., None], parts: list[Tensor], num_clean: int) -> Iterator[list[Tensor]]:
            count, frames = len(parts), context.shape[2]
            tokens = vace.embedded(context).split([part.shape[1] for part in parts], dim=1)
            parts = [x + own for x, own in zip(parts, tokens, strict=True)]
            levels = [at_zero] * num_clean + [time] * (count - num_clean)
            if references is not None:
                parts.insert(0, vace.embedded(references).expand(len(parts[0]), -1, -1))
                levels.insert(0, time)
                frames += references.shape[2]
            rotations = self._rotations_of(frames, *context.shape[3:])
            for layer, layer_text, *times in zip(vace.layers, text, *levels, strict=True):
                run(layer, parts, rotations, times, own_cache(parts, self.config), layer_text)
                yield [layer.after_proj(part) for part in parts[-count:]]

        return Hints(vace.places, self.scale, made)

    def _rotations_of(self, *sizes: int) -> Tensor:
        if sizes not in self._rotations:
            self._rotations[sizes] = self.model.rotations(torch.arange(sizes[0]), *sizes[1:])
        return self._rotations[sizes]


def own_cache(parts: list[Tensor], config: ModelConfig) -> LayerCache:
    """A layer's keys and values of one pass, which sees nothing but itself."""
    tokens, opening = sum(part.shape[1] for part in parts), Opening()
    opening.tokens = torch.arange(tokens, device=parts[0].device)
    opening.visible_tokens = tokens
    like = parts[0].new_empty(len(parts[0]), 0, config.num_heads, config.head_dim)
    return LayerCache(opening, WindowConfig(), like, (tokens, 0))
