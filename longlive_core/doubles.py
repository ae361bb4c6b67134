"""Where there are no doubles."""

import torch


def widest_float(device: torch.device) -> torch.dtype:
    """float64 on CPUs and CUDA cards; float32 elsewhere, since Apple's and some Intel cards have no other."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32
