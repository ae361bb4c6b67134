"""LoRA adapters -> merged weights; in fp32, before any cast, so inference runs plain linears."""

import re

from torch import Tensor

from .wan_names import our_name

_PAIR = re.compile(r"^(?:base_model\.model\.)?(?P<target>.+)\.lora_(?P<side>[AB])\.weight$")


def merge_lora(
    state: dict[str, Tensor], lora: dict[str, Tensor], alpha: float | None = None, strength: float = 1.0
) -> dict[str, Tensor]:
    """`state` under our names with W + strength * (alpha / rank) * B @ A for every pair in `lora`.

    LongLive's own adapter stores no alpha: None means alpha = rank. Raises ValueError when a pair is
    incomplete or names a weight that the model does not have.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in lora.items():
        if not (match := _PAIR.match(name)):
            raise ValueError(
                f"{name!r} is not a LoRA tensor; expected names that end in lora_A.weight / lora_B.weight"
            )
        pairs.setdefault(our_name(match["target"]) + ".weight", {})[match["side"]] = tensor
    merged = dict(state)
    for target, pair in pairs.items():
        if target not in state or len(pair) != 2:
            raise ValueError(
                f"the LoRA's {target!r} has no partner in it, or no weight of that name in the model"
            )
        scale = strength * (1.0 if alpha is None else alpha / pair["A"].shape[0])
        weight = state[target]
        merged[target] = (weight.float() + scale * (pair["B"].float() @ pair["A"].float())).to(weight.dtype)
    return merged
