"""Files of a real model -> a pipeline that is ready to run, without ComfyUI."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .geometry import SPACE_STRIDE
from .model.attention import AUTO, check_attention
from .pipeline import Pipeline
from .speed import COMPILED, PLAIN, Speed
from .text.cache import CachedEncoder, encode_all
from .text.umt5 import encoder_identity, load_umt5
from .vae.streaming import Decoder
from .vae.tiled import TiledDecoder
from .weights.checkpoints import load_transformer, settle
from .weights.lora import LoraChoice
from .weights.vae_files import load_vae


@dataclass(frozen=True)
class ModelFiles:
    """Where the parts of a model lie, and how to load them.

    `family` is a name in config.RELATIVES, None to tell it from the checkpoint; `precision` is of the stored
    weights; `tile_pixels` 0 decodes whole pictures; `embeddings` None is the user's cache folder.
    """

    checkpoint: Path
    text_encoder: Path | None
    vae: Path | None
    loras: tuple[LoraChoice, ...] = ()
    tokenizer: Path | None = None
    keep_text_encoder: bool = False
    family: str | None = None
    precision: str = "bf16"
    attention: str = AUTO
    speed: str = PLAIN
    device: str = "cpu"
    tile_pixels: int = 0
    embeddings: Path | None = None


def load_files(
    files: ModelFiles, on_progress: Callable[[int, int], None] | None = None
) -> tuple[Pipeline, tuple[str, ...]]:
    """The pipeline of these files, and what the user should hear about them.

    The text encoder is loaded only for prompts it has not read before, and leaves memory before the rollout
    begins. Raises ValueError in one sentence for everything that is wrong with the files.
    """
    for part, option in ((files.text_encoder, "--text-encoder"), (files.vae, "--vae")):
        if part is None:
            raise ValueError(f"{files.checkpoint} needs {option}: a checkpoint holds only the transformer")
    check_attention(files.attention, torch.device(files.device))
    loaded = load_transformer(
        files.checkpoint,
        files.loras,
        files.precision,
        files.device,
        files.attention,
        files.family,
        on_progress=on_progress,
    )
    device, is_compiled = torch.device(files.device), files.speed == COMPILED
    notes = (*loaded.notes, *settle(loaded.transformer, files.precision, device, is_compiled))
    decoder = load_decoder(files, loaded.transformer.dtype)
    encoder = text_encoder(files)
    pipeline = Pipeline(
        loaded.preset,
        loaded.transformer,
        decoder,
        encoder,
        lambda prompts: encode_all(encoder, prompts, files.keep_text_encoder),
        speed=Speed(files.speed, files.attention),
    )
    return pipeline, notes


def load_decoder(files: ModelFiles, dtype: torch.dtype) -> Decoder:
    """The VAE or tiny decoder, in tiles if asked."""
    decoder = load_vae(files.vae, dtype, files.device)
    overlap = files.tile_pixels // 4 // SPACE_STRIDE * SPACE_STRIDE
    return TiledDecoder(decoder, files.tile_pixels, overlap, "cpu") if files.tile_pixels else decoder


def text_encoder(files: ModelFiles) -> CachedEncoder:
    """Prompts -> embeddings, from disk where they were read before."""
    dtype = torch.bfloat16
    return CachedEncoder(
        lambda: load_umt5(files.text_encoder, files.tokenizer, dtype, files.device),
        encoder_identity(files.text_encoder, files.tokenizer, dtype),
        files.embeddings,
    )
