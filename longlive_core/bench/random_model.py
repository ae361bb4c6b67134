"""Models of true size with random weights: what they make is noise, how long it takes is the truth."""

import hashlib
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..config import LONGLIVE_1_3B, Preset, TinyAutoencoderConfig
from ..fast.compiled import EAGER
from ..model.attention import AUTO, attention_backend
from ..model.two_sets import transformer_of
from ..pipeline import Pipeline
from ..vae.autoencoder import WanAutoencoder
from ..vae.memory import decoder_config
from ..vae.tiny import TinyAutoencoder

WEIGHT_STD = 0.02
PROMPT_ROWS = 64  # of the rows of text, those that a prompt of a few sentences fills; the rest is padding


def random_pipeline(
    device: torch.device,
    dtype: torch.dtype,
    decoder: str = "tiny",
    attention: str = AUTO,
    speed: str = EAGER,
    num_layers: int | None = None,
    preset: Preset = LONGLIVE_1_3B,
) -> Pipeline:
    """LongLive-1.3B on that device, `num_layers` of it or all; `decoder` is tiny or wan."""
    config = replace(preset.model, num_layers=num_layers or preset.model.num_layers)
    preset = replace(preset, model=config)
    with torch.device(device):
        model = transformer_of(preset.has_two_sets)(config, attention_backend(attention, device))
        made = build_decoder(preset, decoder)
    model = randomised(model).to(dtype)
    return Pipeline(
        preset, model, randomised(made).to(dtype), lambda text: embeds_of(text, preset), speed=speed
    )


def build_decoder(preset: Preset, name: str) -> WanAutoencoder | TinyAutoencoder:
    """The decoder called wan, tiled or tiny, its weights not yet random; a preset's own comes first."""
    config = decoder_config(preset, name)
    is_tiny = isinstance(config, TinyAutoencoderConfig)
    return TinyAutoencoder(config) if is_tiny else WanAutoencoder(config)


@torch.no_grad()
def randomised(module: nn.Module) -> nn.Module:
    """Every matrix random, small enough that nothing overflows; in place."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(0)
    for parameter in module.requires_grad_(False).eval().parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=WEIGHT_STD, generator=generator)
    return module


def embeds_of(text: str, preset: Preset) -> Tensor:
    """A text's own random embedding [1, text tokens, text dim], rows of zeros behind the first ones."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
    config = preset.model
    embeds = torch.zeros(1, config.text_tokens, config.text_dim)
    rows = min(PROMPT_ROWS, config.text_tokens)
    embeds[:, :rows].normal_(generator=torch.Generator().manual_seed(seed))
    return embeds
