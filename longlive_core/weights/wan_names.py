"""The names of Wan and LongLive checkpoints -> ours; the only place that knows theirs."""

import re

from torch import Tensor

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")


def our_name(name: str) -> str:
    """One parameter's name in this project."""
    name = _WRAPPERS.sub("", name)
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return re.sub(r"^blocks\.", "layers.", name).replace("head.head.", "head.proj.")


def from_wan(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Wan state dict under our names; the patch convolution [E, C, 1, 2, 2] becomes a matrix [E, 4C]."""
    ours = {our_name(name): tensor for name, tensor in state.items()}
    if "patch_embedding.weight" in ours:
        ours["patch_embedding.weight"] = ours["patch_embedding.weight"].flatten(1)
    return ours
