"""Rotary positions against diffusers' tables and their defining property."""

import cmath

import pytest
import torch

from model.packed import patch_positions
from model.rope import axis_widths, rotate, rotation_table


@pytest.mark.parametrize("head_dim", [6, 8, 10, 12, 16, 32, 64, 128])
def test_axis_widths_are_even_and_fill_the_head(head_dim: int) -> None:
    widths = axis_widths(head_dim)
    assert sum(widths) == head_dim
    assert all(width >= 2 and width % 2 == 0 for width in widths)


@pytest.mark.parametrize("head_dim", [10, 64, 128])
def test_angles_match_diffusers(head_dim: int) -> None:
    pytest.importorskip("diffusers")
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    grid = (5, 3, 7)
    cos, sin = WanRotaryPosEmbed(head_dim, (1, 2, 2), 1024)(torch.zeros(1, 4, 5, 6, 14))
    table_L1r = rotation_table(patch_positions(grid), head_dim, torch.float32)
    assert torch.equal(table_L1r.real, cos[0, :, :, 0::2])
    assert torch.equal(table_L1r.imag, sin[0, :, :, 1::2])


def test_scores_depend_on_differences_of_position_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q_LHd, k_LHd = (torch.randn(1, 2, 32, generator=generator, dtype=torch.float64) for _ in range(2))

    def score(q_at: tuple[int, int, int], k_at: tuple[int, int, int]) -> torch.Tensor:
        rotated = [
            rotate(x, rotation_table(torch.tensor([at]), 32, torch.float64)) for x, at in ((q_LHd, q_at), (k_LHd, k_at))
        ]
        return (rotated[0] * rotated[1]).sum(-1)

    assert torch.allclose(score((1, 2, 3), (4, 0, 9)), score((11, 7, 5), (14, 5, 11)), rtol=0, atol=1e-12)
    for moved in ((5, 0, 9), (4, 1, 9), (4, 0, 8)):
        assert not torch.allclose(score((1, 2, 3), (4, 0, 9)), score((1, 2, 3), moved), rtol=0, atol=1e-3)


def test_far_positions_keep_their_precision() -> None:
    """Angles are formed in float64: float32 ones are off by 6e-5 at position 1000."""
    position_L3 = torch.tensor([[1000, 1001, 1002]])
    rough_L1r = rotation_table(position_L3, 64, torch.bfloat16)
    assert rough_L1r.dtype == torch.complex64
    assert (rough_L1r - rotation_table(position_L3, 64, torch.float64)).abs().max() < 1e-7


@pytest.mark.parametrize("head_dim", [6, 12, 64, 128])
@pytest.mark.parametrize("step", [1.0, 0.5, 24 / 29.97, 3.75])
def test_fractional_times_turn_by_the_formula(head_dim: int, step: float) -> None:
    """Pair j of an axis of width w turns by place * 10000^(-2j/w), formed here in Python's floats."""
    grid = (7, 3, 2)
    table_Lr = rotation_table(patch_positions(grid, step), head_dim, torch.float64)[:, 0]
    places = [(t * step, h, w) for t in range(7) for h in range(3) for w in range(2)]
    for place, row_r in zip(places, table_Lr.tolist(), strict=True):
        expected = [
            cmath.exp(1j * at * 10000.0 ** (-2 * j / width))
            for at, width in zip(place, axis_widths(head_dim), strict=True)
            for j in range(width // 2)
        ]
        assert all(abs(x - y) < 1e-13 for x, y in zip(row_r, expected, strict=True))
    assert (table_Lr - rotation_table(patch_positions(grid, step), head_dim, torch.bfloat16)[:, 0]).abs().max() < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_of_one_frame_turns_as_whole_indices_do_bit_for_bit(dtype: torch.dtype) -> None:
    whole_L3, stepped_L3 = patch_positions((9, 4, 5)), patch_positions((9, 4, 5), 1.0)
    assert (whole_L3.dtype, stepped_L3.dtype) == (torch.int64, torch.float64)
    whole, stepped = (rotation_table(at, 64, dtype) for at in (whole_L3, stepped_L3))
    assert torch.equal(torch.view_as_real(whole), torch.view_as_real(stepped))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotation_keeps_type_and_length(dtype: torch.dtype) -> None:
    x_LHd = torch.randn(3, 2, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    rotated_LHd = rotate(x_LHd, rotation_table(torch.tensor([[0, 0, 0], [3, 1, 4], [9, 9, 9]]), 12, dtype))
    assert rotated_LHd.dtype == dtype
    assert torch.equal(rotated_LHd[0], x_LHd[0])
    assert not torch.equal(rotated_LHd[1:], x_LHd[1:])
    assert torch.allclose(rotated_LHd.norm(dim=-1), x_LHd.norm(dim=-1), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)
