"""Which weights of a model are trained: low-rank updates of its layers (LoRA, arXiv 2106.09685), or all.

Names are those of the reference's files: `base_model.model.blocks.0.self_attn.q.lora_A.weight` for a LoRA,
`model.blocks.0.self_attn.q.weight` for a weight.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive_core.fast.products import stored_linear
from longlive_core.model.causal_wan import CausalWan
from longlive_core.weights.names import foreign_name

from .draws import generator

PEFT, REFERENCE = "base_model.model.", "model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
Weights = dict[str, nn.Parameter]


def adapt(model: CausalWan, rank: int, alpha: float, key: object) -> None:
    """Freeze the model and add alpha / rank * up @ down to every linear of its layers.

    They get parameters, fp32 on the model's device: `down` [rank, in] Kaiming-uniform, drawn from `key` and
    the name in files, and `up` [out, rank] zero.
    """
    model.requires_grad_(False)
    for name, linear in model.named_modules():
        if name.startswith("layers.") and isinstance(linear, nn.Linear):
            drawn = generator(key, PEFT + foreign_name(name, "wan"))
            down, up = torch.empty(rank, linear.in_features), torch.zeros(linear.out_features, rank)
            nn.init.kaiming_uniform_(down, a=5**0.5, generator=drawn)
            linear.down, linear.up = (nn.Parameter(start.to(model.device)) for start in (down, up))
            linear.product = partial(product, linear, alpha / rank)


def product(
    linear: nn.Linear, scale: float, x: Tensor, weight: Tensor, stored: Tensor | None, bias: Tensor
) -> Tensor:
    """x [..., in] -> [..., out] by a frozen weight, with its scale if it is in 8 bits, and its update."""
    made = F.linear(x, weight, bias) if weight.dtype == x.dtype else stored_linear(x, weight, stored, bias)
    return made + scale * F.linear(F.linear(x, linear.down.to(x.dtype)), linear.up.to(x.dtype))


def trained_weights(model: CausalWan) -> Weights:
    """The weights that are trained, by their names in files: the updates of linears, or all of a model."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return {file_name(name): weight for name, weight in trained.items()}


def file_name(name: str) -> str:
    """A weight's name in the reference's files."""
    stem, _, last = name.rpartition(".")
    end = {"down": DOWN, "up": UP}.get(last)
    return PEFT + foreign_name(stem, "wan") + end if end else REFERENCE + foreign_name(name, "wan")
