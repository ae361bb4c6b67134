"""What passes between the CPU and a card without either waiting for the other."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device; to a card through pinned memory, while both go on with their work."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class FiniteCheck:
    """Whether all numbers of a tensor are finite: asked for now, read when the answer is there.

    Reading waits for the tensor alone, not for what was queued behind it.
    """

    def __init__(self, tensor: Tensor):
        is_finite = torch.isfinite(tensor).all()
        self._answer, self._made = is_finite, None
        if tensor.is_cuda:
            self._answer = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._answer.copy_(is_finite, non_blocking=True)
            self._made = torch.cuda.current_stream(tensor.device).record_event()

    @property
    def is_pending(self) -> bool:
        """Whether reading the answer may take time, in which a card can do more."""
        return self._made is not None

    def passed(self) -> bool:
        if self._made:
            self._made.synchronize()
        return bool(self._answer)
