"""Trained parts -> the safetensors files that ship: `python -m longlive_training package`."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longlive_core.mini.loader import VACE_NAME, WEIGHTS, WORDS_KEY

from .autoencoder import load_autoencoder
from .transformer import load_generator
from .world import vocabulary


def package(
    autoencoder: Path,
    generator: Path,
    control: Path | None = None,
    out: Path = WEIGHTS,
    other: Path | None = None,
    share: float = 0.6,
) -> None:
    """Write transformer, autoencoder and words, in fp16, with the vocabulary in the metadata.

    With an `other` generator, only `share` of the weights is the first one's: what was trained further often
    keeps more of what it could do. With `control`, trained VACE layers, write these alone: into
    `vace.safetensors` next to `out`.
    """
    if control:
        layers = {name: tensor.half().contiguous() for name, tensor in load_file(control).items()}
        save_file(layers, out.with_name(VACE_NAME))
        return
    model = load_generator(generator)
    if other:
        first, second = model.state_dict(), load_generator(other).state_dict()
        model.load_state_dict({name: share * first[name] + (1 - share) * second[name] for name in first})
    parts = {
        "transformer": model.transformer,
        "autoencoder": load_autoencoder(autoencoder),
        "words": model.words,
    }
    save_file(parts_state(parts), out, {WORDS_KEY: " ".join(vocabulary())})


def parts_state(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of Mini's parts under their prefixes, in fp16."""
    return {
        f"{name}.{key}": tensor.detach().half().contiguous()
        for name, part in parts.items()
        for key, tensor in part.state_dict().items()
    }
