"""Rotary position embedding over time, height and width (Su et al. 2021, factorised over three axes).

Shapes: L tokens, H heads, d features of a head, r = d / 2 rotated pairs.
"""

import torch
from torch import Tensor


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Features of a head given to (t, h, w): each spatial axis takes the even floor of a third, time the rest."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rotation_table(position_L3: Tensor, head_dim: int, dtype: torch.dtype, *, theta: float = 10000.0) -> Tensor:
    """Unit complex numbers `[L, 1, r]` that rotate the pairs of a head at places `[L, 3]`, whole or float64.

    Angles are formed in float64 whatever `dtype` is (at position 1000 float32 angles are already off by 6e-5); the
    result is complex128 for float64 and complex64 otherwise.
    """
    angles = []
    for axis, width in enumerate(axis_widths(head_dim)):
        exponent_r = torch.arange(0, width, 2, dtype=torch.float64, device=position_L3.device) / width
        angles.append(position_L3[:, axis, None] * theta**-exponent_r)
    angle_Lr = torch.cat(angles, dim=-1)
    rotation_Lr = torch.polar(torch.ones_like(angle_Lr), angle_Lr)
    return rotation_Lr[:, None].to(torch.complex128 if dtype == torch.float64 else torch.complex64)


def rotate(x_LHd: Tensor, rotation_L1r: Tensor) -> Tensor:
    """Rotate neighbouring pairs of features; narrow types are rotated in float32 and returned in their own type."""
    wide_LHd = x_LHd.to(rotation_L1r.real.dtype)
    rotated_LHr = torch.view_as_complex(wide_LHd.unflatten(-1, (-1, 2))) * rotation_L1r
    return torch.view_as_real(rotated_LHr).flatten(-2).to(x_LHd.dtype)
