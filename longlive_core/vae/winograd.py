"""Convolutions of 3x3 with a quarter of the multiplications: Winograd's F(4x4, 3x3), in plain torch.

For fp32 on CPUs, where direct convolutions are bound by their arithmetic (Lavin and Gray, arXiv 1509.09308).
A tile of 6x6 inputs becomes 36 numbers a channel, 36 matrix products mix the channels, and 4x4 outputs come
of those.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

TILE, RIM = 4, 2  # pixels a tile makes along a side, and what it sees beyond them
MIN_CHANNELS = 64
MIN_PIXELS = 1500  # below, spreading the weights costs more than it saves
CHUNK_BYTES = 16 * 2**20  # of transformed input: what is worked on at a time should stay in a CPU's cache

# The polynomials through 0, 1, -1, 2, -2 and infinity: how a kernel's three numbers become six
SPREAD = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
AT_ONE = 7  # among the 36: (1, 1), which every output of a tile takes up once


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether x [B, C, F, H, W] is better convolved here; what is neither CPU nor fp32 has its own kernels.

    On the meta device fp32 stands for a CPU's.
    """
    is_ours = x.device.type in ("cpu", "meta") and x.dtype == torch.float32 and not torch.is_grad_enabled()
    is_wide = min(weight.shape[:2]) >= MIN_CHANNELS and weight.shape[-2:] == (3, 3)
    return is_ours and is_wide and x.shape[2:].numel() >= MIN_PIXELS


def convolve(parts: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Parts [B, C, F, H, W] of one video, weight [O, C, K, 3, 3] -> [B, O, F - K + 1, H, W].

    Zeros stand around the frames, none before the first. Frames lie channels last. fp32, without gradients.
    """
    padded = framed(parts)  # [B, F, 4m + 2, 4n + 2, C]
    spread = spread_out(weight)
    batch, frames, height, width, _ = padded.shape
    made = frames - weight.shape[2] + 1
    y = padded.new_empty(batch, made, height - RIM, width - RIM, len(weight))
    for rows, columns in chunks(padded):
        ins = padded[:, :, rows.start : rows.stop + RIM, columns.start : columns.stop + RIM]
        for x, out in zip(ins, y[:, :, rows, columns], strict=True):
            _convolve_chunk(x, spread, bias, out)
    height, width = parts[0].shape[3:]
    return y[:, :, :height, :width].permute(0, 4, 1, 2, 3)


def framed(parts: Sequence[Tensor]) -> Tensor:
    """Parts one after the other, channels last, a pixel of zeros around, and more up to whole tiles."""
    batch, channels, _, height, width = parts[0].shape
    rows, columns = (-(-size // TILE) * TILE + RIM for size in (height, width))
    padded = parts[0].new_zeros(batch, sum(part.shape[2] for part in parts), rows, columns, channels)
    first = 0
    for part in parts:
        last = first + part.shape[2]
        padded[:, first:last, 1 : height + 1, 1 : width + 1] = part.permute(0, 2, 3, 4, 1)
        first = last
    return padded


def spread_out(weight: Tensor) -> list[Tensor]:
    """Weight [O, C, K, 3, 3] -> K times [36, C, O]; apart, because the system maps larger pieces anew."""
    once = torch.tensor(SPREAD, dtype=torch.float64)
    twice = torch.kron(once, once).to(weight)  # [36, 9]
    taps = weight.reshape(-1, weight.shape[2:].numel()).t().contiguous()  # [9 K, O C]
    return [(twice @ tap).unflatten(1, weight.shape[:2]).transpose(1, 2) for tap in taps.split(9)]


def chunks(padded: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the output, whole tiles, a chunk at a time."""
    _, frames, height, width, channels = padded.shape
    rows, columns = (height - RIM) // TILE, (width - RIM) // TILE
    tiles = max(1, CHUNK_BYTES // (36 * frames * channels * padded.itemsize))
    across = -(-columns // -(-columns // tiles))  # even shares of a row
    down = max(1, tiles // across)
    for row in range(0, rows, down):
        for column in range(0, columns, across):
            yield (
                slice(TILE * row, TILE * min(row + down, rows)),
                slice(TILE * column, TILE * min(column + across, columns)),
            )
            if padded.is_meta:
                return  # one chunk takes as much memory as all


def _convolve_chunk(x: Tensor, spread: list[Tensor], bias: Tensor, out: Tensor) -> None:
    """x [F, 4m + 2, 4n + 2, C] -> out [F - K + 1, 4m, 4n, O]."""
    frames, made = len(x), len(out)
    rows, columns = out.shape[1] // TILE, out.shape[2] // TILE
    half = x.new_empty(6, frames, rows, x.shape[2], x.shape[3])
    _spread_tiles([x[:, i : i + TILE * rows - 3 : TILE] for i in range(6)], list(half))
    tiles = x.new_empty(6, 6, frames, rows, columns, x.shape[3])
    _spread_tiles([half[..., j : j + TILE * columns - 3 : TILE, :] for j in range(6)], list(tiles.unbind(1)))
    tiles = tiles.view(36, frames, rows * columns, -1)
    product = torch.bmm(tiles[:, :made].flatten(1, 2), spread[0])
    for time, taps in enumerate(spread[1:], start=1):
        product.baddbmm_(tiles[:, time : time + made].flatten(1, 2), taps)
    product[AT_ONE] += bias
    product = product.view(6, 6, made, rows, columns, -1)
    gathered = x.new_empty(TILE, *product.shape[1:])
    _gather_tiles(list(product), list(gathered))
    pixels = out.unflatten(2, (columns, TILE)).unflatten(1, (rows, TILE)).permute(2, 4, 0, 1, 3, 5)
    _gather_tiles(list(gathered.unbind(1)), list(pixels.unbind(1)))


def _spread_tiles(six: list[Tensor], out: list[Tensor]) -> None:
    """Six inputs along one axis of a tile -> the six numbers that the kernel's are multiplied with."""
    even, odd = six[4] - six[2], six[3] - six[1]
    torch.sub(even, six[2] - six[0], alpha=4, out=out[0])
    torch.sub(six[5] - six[3], odd, alpha=4, out=out[5])
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.sub(six[4], six[2], alpha=4, out=even)
    torch.sub(six[3], six[1], alpha=4, out=odd)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])


def _gather_tiles(six: list[Tensor], out: list[Tensor]) -> None:
    """Six products along one axis -> the tile's four outputs."""
    sum1, difference1 = six[1] + six[2], six[1] - six[2]
    sum2, difference2 = six[3] + six[4], six[3] - six[4]
    torch.add(six[0] + sum1, sum2, out=out[0])
    torch.add(difference1, difference2, alpha=2, out=out[1])
    torch.add(sum1, sum2, alpha=4, out=out[2])
    torch.add(difference1 + six[5], difference2, alpha=8, out=out[3])
