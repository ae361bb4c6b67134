"""attend(q, k, v) and its backends, chosen once by name; callers never ask which one they got."""

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fast.attention import HopperAttention

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
AUTO = "auto"
BACKENDS = ("sdpa", "cudnn-even", "flash2", "flash3", "sage")
REMOVED = ("sdpa-cudnn", "sdpa-flash", "flash-even")  # torch chooses among its kernels by itself
HOPPER = 9  # major compute capability
PACKAGES = {"flash2": "flash_attn", "flash3": "flash_attn_interface", "sage": "sageattention"}


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """torch's own attention: q [B, L, N, D] on k, v [B, M, N, D] -> [B, L, N, D]; mask [L, M] or wider."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def known_attention(name: str) -> tuple[str, str | None]:
    """`auto` or a name in BACKENDS, and a note where an old one was replaced. ValueError for any other."""
    if name in REMOVED:
        return AUTO, f"attention {name} was replaced by auto, which chooses by the GPU"
    if name not in (AUTO, *BACKENDS):
        allowed = ", ".join((AUTO, *BACKENDS))
        raise ValueError(f"unknown attention backend {name!r}; choose one of {allowed}")
    return name, None


def attention_backend(name: str = "sdpa", device: torch.device | str = "cpu") -> Attend:
    """The attend function of that name; `auto` is the fastest exact one for `device`.

    All but sdpa need an NVIDIA GPU and half precision, and take no mask, which inference never needs there.
    Raises ValueError for an unknown name, a device that cannot run it, or a package that is missing.
    """
    name, device = known_attention(name)[0], torch.device(device)
    if name == AUTO:
        name = "cudnn-even" if is_hopper(device) else "sdpa"
    if name == "sdpa":
        return sdpa
    if device.type != "cuda":
        raise ValueError(f"attention {name!r} needs an NVIDIA GPU; choose sdpa here")
    if name == "cudnn-even":
        return HopperAttention(torch.cuda.get_device_properties(device).multi_processor_count)
    return from_package(name)


def is_hopper(device: torch.device) -> bool:
    """Whether `device` is an NVIDIA GPU on which cuDNN's attention is the fastest."""
    is_nvidia = device.type == "cuda" and torch.version.cuda is not None
    return is_nvidia and torch.cuda.get_device_capability(device)[0] == HOPPER


def from_package(name: str) -> Attend:
    """A backend of an optional package: flash-attn 2 or 3, or SageAttention, which rounds to 8 bits."""
    try:
        package = importlib.import_module(PACKAGES[name])
    except ImportError as error:
        raise ValueError(
            f"attention backend {name!r} needs the package {PACKAGES[name]}, which cannot be imported "
            f"({error}); install it or choose sdpa"
        ) from error
    if name == "sage":
        return lambda q, k, v, mask=None: package.sageattn(q, k, v, tensor_layout="NHD")

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        out = package.flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # flash-attn 3 may return the log-sum-exp as well

    return attend
