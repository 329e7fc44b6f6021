"""Packed attention against a dense softmax with a block-diagonal mask."""

import pytest
import torch
from torch import Tensor

from model.attention import Attention, Segments, packed_attention
from model.layers import DENSE


def masked_softmax(q_LHd: Tensor, k_KHd: Tensor, v_KHd: Tensor, lengths: list[int], key_lengths: list[int]) -> Tensor:
    """Attention by its definition, with every pair of different segments masked out."""
    segment_L, segment_K = (torch.arange(len(n)).repeat_interleave(torch.tensor(n)) for n in (lengths, key_lengths))
    scores_HLK = torch.einsum("lhd,khd->hlk", q_LHd, k_KHd) * q_LHd.shape[-1] ** -0.5
    scores_HLK = scores_HLK.masked_fill(segment_L[:, None] != segment_K, float("-inf"))
    return torch.einsum("hlk,khd->lhd", scores_HLK.softmax(-1), v_KHd)


@pytest.mark.parametrize(
    ("lengths", "key_lengths"), [([5, 1, 9], [5, 1, 9]), ([5, 1, 9], [1, 7, 3]), ([6], [2]), ([4, 4], [4, 4])]
)
def test_forward_and_backward_equal_the_masked_softmax(lengths: list[int], key_lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = (sum(lengths), sum(key_lengths), sum(key_lengths))
    qkv = [torch.randn(n, 3, 8, generator=generator, dtype=torch.float64).requires_grad_() for n in tokens]
    cotangent = torch.randn(sum(lengths), 3, 8, generator=generator, dtype=torch.float64)
    queries, keys = (Segments.of(tuple(n), torch.device("cpu")) for n in (lengths, key_lengths))
    ours = packed_attention(*qkv, queries, keys)
    theirs = masked_softmax(*qkv, lengths, key_lengths)
    assert (ours - theirs).abs().max() < 1e-13
    for our_gradient, their_gradient in zip(
        torch.autograd.grad(ours, qkv, cotangent), torch.autograd.grad(theirs, qkv, cotangent), strict=True
    ):
        assert (our_gradient - their_gradient).abs().max() < 1e-13


def test_lengths_that_do_not_fill_the_pack_are_a_bug() -> None:
    x_LHd = torch.zeros(6, 2, 8)
    segments = Segments.of((2, 3), torch.device("cpu"))
    with pytest.raises(RuntimeError):
        packed_attention(x_LHd, x_LHd, x_LHd, segments, segments)


def test_norm_runs_over_the_full_width_before_heads_are_split() -> None:
    """Scaling one head's queries changes the others': a norm per head would not."""
    torch.manual_seed(0)
    attention = Attention(2, 8, 1e-6, DENSE, to_text=False).double()
    x_lD = torch.randn(4, 16, dtype=torch.float64)
    query = attention.query_norm(attention.query(x_lD))
    with torch.no_grad():
        attention.query.weight[:8] *= 100
        attention.query.bias[:8] *= 100
    assert (attention.query_norm(attention.query(x_lD))[:, 8:] / query[:, 8:]).max() < 0.1


def test_gpu_kernel_takes_our_arguments() -> None:
    """On the meta device: shapes and the backward's existence, since its numbers need a GPU."""

    def segments(lengths: tuple[int, ...]) -> Segments:
        return Segments(lengths=lengths, boundaries=torch.zeros(len(lengths) + 1, dtype=torch.int32, device="meta"))

    qkv = [torch.zeros(n, 2, 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for n in (20, 9, 9)]
    out_LHd = packed_attention(*qkv, segments((12, 8)), segments((4, 5)))
    assert out_LHd.shape == (20, 2, 64) and out_LHd.dtype == torch.bfloat16
    assert [x.shape for x in torch.autograd.grad(out_LHd.sum(), qkv)] == [x.shape for x in qkv]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention over packed segments needs a GPU")
def test_gpu_kernel_equals_the_loop() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    lengths, key_lengths = (130, 1, 257), (9, 512, 1)
    tokens = (sum(lengths), sum(key_lengths), sum(key_lengths))
    qkv = [torch.randn(n, 3, 64, generator=generator, device="cuda") for n in tokens]
    queries, keys = (Segments.of(n, torch.device("cuda")) for n in (lengths, key_lengths))
    exact = packed_attention(*qkv, queries, keys)
    fused = packed_attention(*(x.bfloat16() for x in qkv), queries, keys)
    assert (fused.float() - exact).norm() / exact.norm() < 0.01
