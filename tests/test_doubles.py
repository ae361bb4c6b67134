"""Devices without float64: the same numbers, a little less exact."""

import pytest
import torch
from torch.testing import assert_close

from longlive_core.model import causal_wan, rope
from longlive_core.model.rope import widest_float
from longlive_core.rollout import noise


def test_only_cpus_and_cuda_cards_are_asked_for_doubles() -> None:
    wide = {name: widest_float(torch.device(name)) for name in ("cpu", "cuda", "mps", "xpu")}
    assert wide == {"cpu": torch.float64, "cuda": torch.float64, "mps": torch.float32, "xpu": torch.float32}


@pytest.mark.parametrize("first", [0, 1000])
def test_without_doubles_the_numbers_are_nearly_the_same(first: int, monkeypatch) -> None:
    torch.manual_seed(0)
    x, flow = torch.randn(2, 1, 4, 3, 8, 8)
    positions, levels = torch.arange(first, first + 3), torch.tensor([0.0, 625.0, 1000.0])

    def numbers() -> list[torch.Tensor]:
        return [
            rope.rotation(positions, 4, 6, 128),
            causal_wan.sinusoid(levels, 256).float(),
            noise.clean_of(x, flow, 0.625),
        ]

    exact = numbers()
    for module in (rope, causal_wan, noise):
        monkeypatch.setattr(module, "widest_float", lambda device: torch.float32)
    for nearly, right in zip(numbers(), exact, strict=True):
        assert nearly.dtype == right.dtype
        assert_close(nearly, right, atol=2e-4, rtol=0)
