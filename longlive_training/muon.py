"""Muon in fp32 for small models on CPUs, where torch's own (bf16 inside) is a hundred times slower."""

from collections import defaultdict

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ADAM_RMS = 0.2  # size of an update relative to the rate, as AdamW's would be


def orthogonalised(matrices: Tensor) -> Tensor:
    """Newton-Schulz iteration: matrices [M, R, C] with all singular values brought near one."""
    a, b, c = COEFFICIENTS
    x = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if matrices.shape[1] <= matrices.shape[2] else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for 2-D parameters (Jordan 2024; update size after Liu et al. 2025)."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float = 0.01):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = orthogonalised(torch.stack([self._momentum(p) for p in parameters]))
                scale = group["lr"] * ADAM_RMS * max(shape) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-scale)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov momentum of the gradient."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        return torch.lerp(parameter.grad, state["momentum"], MOMENTUM)
