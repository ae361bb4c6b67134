"""The packaged weights of LongLive Mini -> transformer, autoencoder and word encoder."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from ..config import MINI
from ..model.attention import Attend, sdpa
from ..model.causal_wan import CausalWan
from ..text.words import WordEncoder
from ..vae.tiny import TinyAutoencoder
from ..weights.files import first_line
from ..weights.vace import graft

WEIGHTS = Path(__file__).parent / "mini.safetensors"
VACE_NAME = "vace.safetensors"  # next to the weights that it was trained on
WORDS_KEY = "words"


class Mini(NamedTuple):
    """The three parts of LongLive Mini."""

    transformer: CausalWan
    autoencoder: TinyAutoencoder
    words: WordEncoder

    def encode_text(self, prompt: str) -> torch.Tensor:
        """A prompt -> [1, text tokens, text dim]."""
        return self.words([prompt])


def load_mini(weights: Path = WEIGHTS, attend: Attend = sdpa) -> Mini:
    """Build Mini from one safetensors file (prefixes transformer., autoencoder., words.), in fp32 on the CPU.

    Its VACE layers, for control, are those of `vace.safetensors` next to the file, if that is there.
    Raises ValueError, which names the file, when it is missing, damaged or not Mini's.
    """
    try:
        with safe_open(weights, "pt") as file:
            vocabulary = tuple((file.metadata() or {})[WORDS_KEY].split())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
        mini = empty_mini(vocabulary, attend)
        for name, part in mini._asdict().items():
            own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            part.load_state_dict(own, assign=True)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = first_line(error)
        raise ValueError(
            f"LongLive Mini cannot be loaded from {weights}: {reason}; reinstall the pack to restore the file"
        ) from error
    mini.autoencoder.to(memory_format=torch.channels_last)
    if (vace := weights.with_name(VACE_NAME)).exists():
        graft(mini.transformer, vace, "fp32")
    return Mini(*(part.eval().requires_grad_(False) for part in mini))


def empty_mini(vocabulary: tuple[str, ...], attend: Attend) -> Mini:
    """Mini on the meta device, to be given its weights."""
    config = MINI.model
    with torch.device("meta"):
        words = WordEncoder(vocabulary, config.text_tokens, config.text_dim)
        return Mini(CausalWan(config, attend), TinyAutoencoder(MINI.autoencoder), words)
