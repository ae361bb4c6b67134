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


def adapt(model: CausalWan, rank: int, alpha: float, key: object) -> Weights:
    """Freeze the model and add alpha / rank * up @ down to every linear of its layers.

    The weights that are trained are fp32 on the model's device: down [rank, in] Kaiming-uniform, drawn from
    `key` and its name, up [out, rank] zero.
    """
    model.requires_grad_(False)
    weights: Weights = {}
    for name, linear in model.named_modules():
        if name.startswith("layers.") and isinstance(linear, nn.Linear):
            stem = PEFT + foreign_name(name, "wan")
            down = torch.empty(rank, linear.in_features)
            nn.init.kaiming_uniform_(down, a=5**0.5, generator=generator(key, stem))
            for end, start in ((DOWN, down), (UP, torch.zeros(linear.out_features, rank))):
                weights[stem + end] = nn.Parameter(start.to(model.device))
            linear.product = partial(product, weights[stem + DOWN], weights[stem + UP], alpha / rank)
    return weights


def product(
    down: Tensor, up: Tensor, scale: float, x: Tensor, weight: Tensor, stored: Tensor | None, bias: Tensor
) -> Tensor:
    """x [..., in] -> [..., out] by a frozen weight, with its scale if it is in 8 bits, and its update."""
    linear = F.linear(x, weight, bias) if weight.dtype == x.dtype else stored_linear(x, weight, stored, bias)
    return linear + scale * F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))


def all_weights(model: CausalWan) -> Weights:
    """Every weight of the model, to be trained."""
    model.requires_grad_(True)
    return {REFERENCE + foreign_name(name, "wan"): weight for name, weight in model.named_parameters()}
