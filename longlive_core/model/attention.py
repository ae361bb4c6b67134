"""attend(q, k, v) and its backends, chosen once by name; callers never ask which one they got."""

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import LONGLIVE_1_3B
from ..fast.attention import HALVES, HopperAttention
from ..fast.optional import GAIN, Source, Trial, tried
from ..geometry import latent_size, tokens_per_frame

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
AUTO = "auto"
FLASH = ("flash3", "flash2")
BACKENDS = ("sdpa", "cudnn-even", "flash2", "flash3", "sage", "int8")
REMOVED = ("sdpa-cudnn", "sdpa-flash", "flash-even")  # torch chooses among its kernels by itself
HOPPER = 9  # major compute capability
PACKAGES = {
    "flash2": Source("flash_attn", "flash_attn_func", "pip install flash-attn"),
    "flash3": Source("flash_attn_interface", "flash_attn_func", "build flash-attn 3 from its source"),
    "sage": Source("sageattention", "sageattn", "pip install sageattention"),
    "int8": Source("comfy_kitchen", "int8_attention", 'pip install "comfy-kitchen>=0.2.30"'),
}


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


def attention_backend(
    name: str = "sdpa",
    device: torch.device | str = "cpu",
    on_note: Callable[[str], None] = lambda note: None,
) -> Attend:
    """The attend function of that name; `auto` is the fastest exact one for `device`.

    All but sdpa need an NVIDIA GPU (int8 also runs on AMD's) and leave to sdpa what is not in half precision.
    A package is tried on `device` once a process, and `on_note` called with the result. Raises ValueError for
    an unknown name, a device that cannot run it, or a package that is missing.
    """
    name, device = known_attention(name)[0], torch.device(device)
    if name == AUTO:
        attend, note = fastest_exact(device)
        if note:
            on_note(note)
        return attend
    if name == "sdpa":
        return sdpa
    if device.type != "cuda":
        raise ValueError(f"attention {name!r} needs an NVIDIA GPU; choose sdpa here")
    if name == "cudnn-even":
        return HopperAttention(torch.cuda.get_device_properties(device).multi_processor_count)
    attend, found = from_package(name, device)
    on_note(f"attention {name}: {found.speed:.2f} times as fast as sdpa here, {found.loss:.2%} rms from it")
    return attend


def is_hopper(device: torch.device) -> bool:
    """Whether `device` is an NVIDIA GPU on which cuDNN's attention is the fastest."""
    is_nvidia = device.type == "cuda" and torch.version.cuda is not None
    return is_nvidia and torch.cuda.get_device_capability(device)[0] == HOPPER


@cache
def fastest_exact(device: torch.device) -> tuple[Attend, str | None]:
    """torch's attention for `device`, or flash-attn where it is installed and faster, which a note says."""
    usual, rivals = attention_backend("cudnn-even" if is_hopper(device) else "sdpa", device), []
    for name in FLASH if device.type == "cuda" else ():
        try:
            attend, found = from_package(name, device)
        except ValueError:  # not installed, or not for this GPU
            continue
        rivals.append((found.speed, name, attend))
    if not rivals:
        return usual, None
    speed, name, attend = max(rivals)
    if speed < GAIN * trial(usual, device).speed:
        return usual, None
    return attend, f"attention auto: {name}, {speed:.2f} times as fast as sdpa here"


@cache
def from_package(name: str, device: torch.device) -> tuple[Attend, Trial]:
    """A backend of an optional package, and what a trial on `device` found; sage and int8 round to 8 bits.

    Raises ValueError where the package is missing or does not run there.
    """
    try:
        kernel = KERNELS[name](PACKAGES[name].load())
    except ValueError as error:
        raise ValueError(f"attention {name!r}: {error}, or choose sdpa") from error

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return kernel(q, k, v) if mask is None and q.dtype in HALVES else sdpa(q, k, v, mask)

    try:
        return attend, trial(attend, device)
    except Exception as error:  # a kernel fails in ways of its own
        raise ValueError(f"attention {name!r} does not run here ({error}); choose sdpa") from error


def trial(attend: Attend, device: torch.device) -> Trial:
    """Compare with sdpa: a block of LongLive-1.3B on its full window, in half precision."""
    preset = LONGLIVE_1_3B
    tokens = tokens_per_frame(*latent_size(preset.width, preset.height))
    frames = preset.window.block_latent_frames, *[preset.window.window_latent_frames] * 2
    sizes = ((1, count * tokens, preset.model.num_heads, preset.model.head_dim) for count in frames)
    qkv = [torch.randn(size, dtype=torch.float16, device=device) for size in sizes]
    return tried(partial(attend, *qkv), partial(sdpa, *qkv), device)


def flash(function: Callable[..., Tensor | tuple[Tensor, ...]]) -> Attend:
    """flash-attn 2 or 3, which may return the log-sum-exp as well."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(q, k, v)
        return out[0] if isinstance(out, tuple) else out

    return attend


def in_heads(function: Callable[..., Tensor]) -> Attend:
    """comfy-kitchen's kernel. It quantises the window in every call: its packed keys cannot be extended."""
    return lambda q, k, v: function(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


KERNELS = {  # a package's function -> the same, called as ours are, without a mask
    "flash2": flash,
    "flash3": flash,
    "sage": lambda function: partial(function, tensor_layout="NHD"),
    "int8": in_heads,
}
