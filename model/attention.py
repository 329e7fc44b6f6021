"""Attention inside the segments of a pack.

Shapes: L tokens of a pack, M those of one context shard, l those of one shard of the residual stream, K key tokens,
D width, f features and H heads of one tensor shard, h those of one context shard of them, d features of a head,
r = d / 2, S segments.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from model.layers import Layers
from model.rope import rotate


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Where the segments of a packed tensor begin and end."""

    lengths: tuple[int, ...]
    """Tokens of each of the S segments."""
    boundaries: Tensor | None
    """int32 `[S + 1]` cumulative lengths on the device; None on the CPU, where attention runs segment by segment."""

    @staticmethod
    def of(lengths: tuple[int, ...], device: torch.device) -> "Segments":
        if device.type == "cpu":
            return Segments(lengths=lengths, boundaries=None)
        boundaries = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return Segments(lengths=lengths, boundaries=boundaries.to(device, non_blocking=True))


def packed_attention(q_LHd: Tensor, k_KHd: Tensor, v_KHd: Tensor, queries: Segments, keys: Segments) -> Tensor:
    """Full softmax attention of each query segment to the key segment of the same index: `[L, H, d]`."""
    assert len(queries.lengths) == len(keys.lengths)
    if queries.boundaries is not None and q_LHd.dtype in (torch.float16, torch.bfloat16):
        longest_q, longest_k = max(queries.lengths), max(keys.lengths)
        out = varlen_attn(q_LHd, k_KHd, v_KHd, queries.boundaries, keys.boundaries, longest_q, longest_k)
        assert isinstance(out, Tensor)
        return out
    segments = zip(q_LHd.split(queries.lengths), k_KHd.split(keys.lengths), v_KHd.split(keys.lengths), strict=True)
    # Heads lead through a transposed view: SDPA takes strides, so nothing is copied. A context shard need not have
    # tokens of every segment.
    out_HLd = [
        scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in qkv))[0] for qkv in segments if len(qkv[0])
    ]
    return torch.cat([out.transpose(0, 1) for out in out_HLd])


class Attention(nn.Module):
    """Multi-head attention with q/k norm over the full width, to the tokens themselves or to text."""

    def __init__(self, num_heads: int, head_dim: int, eps: float, layers: Layers, *, to_text: bool) -> None:
        super().__init__()
        dim = num_heads * head_dim
        self.head_dim = head_dim
        self.layers = layers
        self.query = layers.column_linear(dim, dim, gather_sequence=True)
        self.key = layers.column_linear(dim, dim, gather_sequence=not to_text)
        self.value = layers.column_linear(dim, dim, gather_sequence=not to_text)
        self.query_norm = layers.sharded_rms_norm(dim, eps)
        self.key_norm = layers.sharded_rms_norm(dim, eps)
        self.output = layers.row_linear(dim, dim)

    def forward(
        self, x_lD: Tensor, source_KD: Tensor, queries: Segments, keys: Segments, rotation_L1r: Tensor | None
    ) -> Tensor:
        """Attend from `x_lD` to `source_KD`; returns `[l, D]`.

        With `x_lD` itself as the source, all tokens attend to all, with positions. Another source is the text, which
        every rank has whole: its queries stay where they are, and `queries` are those of this context shard.
        """
        to_itself = source_KD is x_lD
        if to_itself:
            q_Mf, k_Kf, v_Kf = self.layers.project(x_lD, (self.query, self.key, self.value))
        else:
            (q_Mf,) = self.layers.project(x_lD, (self.query,))
            k_Kf, v_Kf = self.layers.project(source_KD, (self.key, self.value))
        q_Mf, k_Kf = self.layers.normalise((self.query_norm, self.key_norm), (q_Mf, k_Kf))
        q_MHd, k_KHd, v_KHd = (rearrange(x_Nf, "N (H d) -> N H d", d=self.head_dim) for x_Nf in (q_Mf, k_Kf, v_Kf))
        if to_itself:
            assert rotation_L1r is not None
            q_Lhd, k_Lhd, v_Lhd = self.layers.gather_tokens((q_MHd, k_KHd, v_KHd))
            q_Lhd, k_Lhd = rotate(q_Lhd, rotation_L1r), rotate(k_Lhd, rotation_L1r)
            out_MHd = self.layers.gather_heads(packed_attention(q_Lhd, k_Lhd, v_Lhd, queries, keys))
        else:
            out_MHd = packed_attention(q_MHd, k_KHd, v_KHd, queries, keys)
        return self.output(rearrange(out_MHd, "M H d -> M (H d)"))
