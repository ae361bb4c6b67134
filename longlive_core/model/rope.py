"""Three-axis rotary positions: angles from integer positions, so there is no table and no end to it.

The head dim D is split into time, row and column parts; pairs are interleaved (2i, 2i + 1), theta 10000
(Wan 2.1). Angles are made in float64 where there is that; what is kept is their cosines and sines.
"""

import torch
from torch import Tensor

THETA = 10000.0


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices without it (MPS, some XPUs)."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def axis_sizes(head_dim: int) -> tuple[int, int, int]:
    """How Wan divides the head dim among time, rows and columns; 128 -> (44, 42, 42)."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def _angles(positions: Tensor, size: int) -> Tensor:
    wide = widest_float(positions.device)
    frequencies = THETA ** (-torch.arange(0, size, 2, dtype=wide, device=positions.device) / size)
    return positions.to(wide)[:, None] * frequencies


def rotation(positions: Tensor, rows: int, columns: int, head_dim: int) -> Tensor:
    """Rotations of the tokens of latent frames at integer `positions` [T], each `rows` x `columns` tokens.

    Returns fp32 [T * rows * columns, 1, D / 2, 2], cosine and sine, in token order (frame, row, column).
    """
    time, row, column = axis_sizes(head_dim)
    row_positions = torch.arange(rows, device=positions.device)
    column_positions = torch.arange(columns, device=positions.device)
    grid = (len(positions), rows, columns, -1)
    angles = torch.cat(
        (
            _angles(positions, time)[:, None, None].expand(grid),
            _angles(row_positions, row)[None, :, None].expand(grid),
            _angles(column_positions, column)[None, None].expand(grid),
        ),
        dim=-1,
    )
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float().flatten(0, 2).unsqueeze(1)


def shift(latent_frames: int, head_dim: int, device: torch.device) -> Tensor:
    """The rotation [1, 1, D / 2, 2] that moves a key by that many latent frames in time."""
    return rotation(torch.tensor([latent_frames], device=device), 1, 1, head_dim)


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotate x [B, L, N, D] by rotations [L, 1, D / 2, 2] (or [1, 1, D / 2, 2] for all tokens alike)."""
    if torch.compiler.is_compiling():  # the compiler fuses real numbers with what stands around them
        return _turned(_pairs(x), rotations).flatten(-2).to(x.dtype)
    turned = torch.view_as_complex(_pairs(x)) * torch.view_as_complex(rotations)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def _pairs(x: Tensor) -> Tensor:
    return x.float().unflatten(-1, (-1, 2))


def _turned(pairs: Tensor, rotations: Tensor) -> Tensor:
    """The complex product [..., 2] in real numbers; nothing is put together, so it compiles to one step."""
    cosine, sine = rotations.unsqueeze(-2).unbind(-1)  # [L, 1, D / 2, 1]
    signs = torch.arange(-1, 2, 2, device=pairs.device)
    return pairs * cosine + pairs.flip(-1) * (sine * signs)
