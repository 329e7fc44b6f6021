"""The pieces of a block by their equations."""

import pytest
import torch
from torch import Tensor

from model.attention import Segments
from model.block import Block, BlockContext, gated_add, modulated_norm, widen
from model.layers import DENSE
from model.rope import rotation_table


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def context_of(table_R6D: Tensor, row_l: Tensor) -> BlockContext:
    tokens, cpu = len(row_l), torch.device("cpu")
    return BlockContext(
        table_R6D=table_R6D,
        row_l=row_l,
        text_KD=randn(3, 12),
        rotation_L1r=rotation_table(torch.arange(tokens)[:, None].expand(-1, 3), 6, torch.float64),
        video=Segments.of((tokens,), cpu),
        video_here=Segments.of((tokens,), cpu),
        text=Segments.of((3,), cpu),
    )


def test_modulated_norm_by_hand() -> None:
    torch.manual_seed(0)
    x_lD, shift_lD, scale_lD = randn(4, 12), randn(4, 12), randn(4, 12)
    centred = x_lD - x_lD.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * scale_lD + shift_lD
    assert (modulated_norm(x_lD, shift_lD, scale_lD, 1e-3) - expected).abs().max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams_are_normalised_and_summed_wide(dtype: torch.dtype) -> None:
    """One rounding at the end: the result is the float32 one, rounded once."""
    torch.manual_seed(0)
    x_lD, update_lD = torch.randn(2, 64).to(dtype) + 30, torch.randn(2, 64).to(dtype)
    wide = torch.randn(2, 64)
    assert torch.equal(modulated_norm(x_lD, wide, wide, 1e-6), modulated_norm(x_lD.float(), wide, wide, 1e-6).to(dtype))
    assert torch.equal(gated_add(x_lD, update_lD, wide), (x_lD.float() + wide * update_lD.float()).to(dtype))


def test_widen_never_narrows() -> None:
    types = {torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64}
    assert {t: widen(torch.zeros(1, dtype=t)).dtype for t in types} == types


def test_closed_gates_leave_the_stream() -> None:
    """With zero gates and a zero output of cross-attention a block is the identity, whatever shift and scale are."""
    torch.manual_seed(0)
    block = Block(2, 6, 20, 1e-6, DENSE).double()
    torch.nn.init.zeros_(block.cross_attention.output.weight)
    torch.nn.init.zeros_(block.cross_attention.output.bias)
    table_R6D = randn(2, 6, 12)
    table_R6D[:, [2, 5]] = 0
    x_lD = randn(5, 12)
    assert torch.equal(block(x_lD, context_of(table_R6D, torch.tensor([0, 0, 1, 1, 1]))), x_lD)


def test_each_token_reads_its_own_row() -> None:
    """Six modulations in Wan's order, the table of the block added, one added to the scales."""
    torch.manual_seed(0)
    block = Block(2, 6, 20, 1e-6, DENSE).double()
    torch.nn.init.normal_(block.scale_shift_table)
    table_R6D, row_l = randn(3, 6, 12), torch.tensor([2, 0, 2, 1, 0])
    modulations = block.modulations(context_of(table_R6D, row_l))
    for k, values_lD in enumerate(modulations):
        expected = (table_R6D + block.scale_shift_table)[row_l, k] + (1 if k in (1, 4) else 0)
        assert torch.allclose(values_lD, expected, rtol=0, atol=1e-14)
