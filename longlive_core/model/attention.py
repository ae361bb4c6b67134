"""attend(q, k, v) and its backends, chosen once by name; callers never ask which one they got."""

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .even import Even

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """torch's own attention: q [B, L, N, D] on k, v [B, M, N, D] -> [B, L, N, D]; mask [L, M] or wider."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _sdpa_by(kernel: SDPBackend) -> Attend:
    """torch's attention by one of its kernels alone; RuntimeError where that one cannot run."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        with sdpa_kernel(kernel):
            return sdpa(q, k, v, mask)

    return attend


def _cudnn_even() -> Attend:
    kernel = torch.ops.aten._scaled_dot_product_cudnn_attention
    return Even(lambda q, k, v: kernel(q, k, v, None, True)[:2])


def _flash_even() -> Attend:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention
    return Even(lambda q, k, v: kernel(q, k, v)[:2])


def _flash2() -> Attend:
    kernel = importlib.import_module("flash_attn").flash_attn_func
    return lambda q, k, v, mask=None: kernel(q, k, v)


def _flash3() -> Attend:
    kernel = importlib.import_module("flash_attn_interface").flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        out = kernel(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # older builds also return the log-sum-exp

    return attend


def _sage() -> Attend:
    kernel = importlib.import_module("sageattention").sageattn
    return OnDefaultStream(lambda q, k, v, mask=None: kernel(q, k, v, tensor_layout="NHD"))


class OnDefaultStream:
    """A backend whose kernels are launched on a card's default stream, whatever the current one is.

    SageAttention 2 does that. Both streams are made to wait for each other, so that no number is read before
    it is there; a CUDA graph would record nothing of it, and replay a pass without attention.
    """

    is_recordable = False

    def __init__(self, attend: Attend):
        self._attend = attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """As any backend."""
        if not q.is_cuda:
            return self._attend(q, k, v, mask)
        current, default = torch.cuda.current_stream(q.device), torch.cuda.default_stream(q.device)
        default.wait_stream(current)
        with torch.cuda.stream(default):
            out = self._attend(q, k, v, mask)
        out.record_stream(current)
        current.wait_stream(default)
        return out


def is_recordable(attend: Attend) -> bool:
    """Whether CUDA graphs may record it."""
    return getattr(attend, "is_recordable", True)


_MAKERS: dict[str, tuple[Callable[[], Attend], str]] = {
    "sdpa": (lambda: sdpa, "torch"),
    "sdpa-cudnn": (lambda: _sdpa_by(SDPBackend.CUDNN_ATTENTION), "torch"),
    "sdpa-flash": (lambda: _sdpa_by(SDPBackend.FLASH_ATTENTION), "torch"),
    "cudnn-even": (_cudnn_even, "torch"),
    "flash-even": (_flash_even, "torch"),
    "flash2": (_flash2, "flash-attn"),
    "flash3": (_flash3, "flash-attn-3 (hopper build of flash-attention)"),
    "sage": (_sage, "sageattention"),
}
BACKENDS = tuple(_MAKERS)
AUTO = "auto"  # sdpa, until the fastest is measured (fastest.py)
EXACT = tuple(name for name in BACKENDS if name != "sage")  # Sage rounds queries and keys to 8 bits


def check_attention(name: str, device: torch.device) -> None:
    """ValueError unless a backend of that name may run on that device; auto and sdpa run everywhere."""
    _check_known(name)
    if name not in (AUTO, "sdpa") and device.type != "cuda":
        raise ValueError(f"attention {name!r} needs an NVIDIA card; choose sdpa here")


def attention_backend(name: str = "sdpa") -> Attend:
    """The attend function of that name; ValueError names the choices, or the package that is missing.

    All but sdpa run on CUDA in half precision and take no mask, which inference never needs.
    """
    _check_known(name)
    if name == AUTO:
        return sdpa
    make, package = _MAKERS[name]
    try:
        return make()
    except ImportError as error:
        raise ValueError(
            f"attention backend {name!r} needs the package {package}, which cannot be imported ({error}); "
            "install it or choose sdpa"
        ) from error


def _check_known(name: str) -> None:
    if name not in (AUTO, *BACKENDS):
        raise ValueError(f"unknown attention backend {name!r}; choose one of {', '.join((AUTO, *BACKENDS))}")
