"""How fast a GPU could be at best: the arithmetic of one block, and what the hardware gives."""

from dataclasses import dataclass

from ..config import Preset
from ..geometry import TIME_STRIDE, latent_size, tokens_per_frame

# Dense TFLOP/s of matrix products and of attention, as torch's own kernels (cuBLAS, cuDNN) reach them on an
# H200; an H100 SXM has the same tensor cores. Other GPUs have no limit to be held against.
BF16_TFLOPS = {"H200": (788.0, 650.0), "H100": (788.0, 650.0)}


@dataclass(frozen=True)
class BlockFlops:
    """Floating-point operations of one steady block: all passes of the block, window full."""

    linears: float
    self_attention: float
    cross_attention: float

    @property
    def total(self) -> float:
        return self.linears + self.self_attention + self.cross_attention


def block_flops(preset: Preset, width: int, height: int) -> BlockFlops:
    """The least that the denoising steps and the commit of one block need, as if each ran to the end.

    A multiplication and an addition are two. Left out is what is made once a prompt or once a noise level.
    """
    model, window = preset.model, preset.window
    tokens = tokens_per_frame(*latent_size(width, height))
    block, seen = window.block_latent_frames * tokens, window.window_latent_frames * tokens
    passes = len(preset.sigmas.steps) + 1
    weights = 6 * model.dim**2 + 2 * model.dim * model.ffn_dim  # q, k, v, o; q, o on the prompt; MLP
    ends = 2 * model.dim * model.latent_channels * 4  # patches in and out
    return BlockFlops(
        linears=passes * 2 * block * (model.num_layers * weights + ends),
        self_attention=passes * model.num_layers * 4 * block * seen * model.dim,
        cross_attention=passes * model.num_layers * 4 * block * model.text_tokens * model.dim,
    )


def least_seconds(flops: BlockFlops, gpu: str, bits: int = 16) -> float | None:
    """Seconds a block takes at best on a GPU of that name; None where no limit is known.

    In 8 bits the linears run twice as fast, attention does not.
    """
    for name, (matmul, attention) in BF16_TFLOPS.items():
        if name in gpu:
            linears = flops.linears / (matmul * 16 / bits)
            return (linears + (flops.self_attention + flops.cross_attention) / attention) / 1e12
    return None


def frames_per_second(preset: Preset, seconds_a_block: float) -> float:
    """Pixel frames a second at so many seconds a block."""
    return preset.window.block_latent_frames * TIME_STRIDE / seconds_a_block
