"""One block of the DiT: self-attention, cross-attention to text and an MLP, modulated by noise level.

Shapes: L tokens of a pack, l those of one shard of the residual stream, D width, R conditioning rows, K text tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from model.attention import Attention, Segments
from model.layers import Layers


@dataclass(frozen=True, kw_only=True)
class BlockContext:
    """What all blocks of a stage read beside the residual stream."""

    table_R6D: Tensor
    """Modulations of each row in float32 or wider: shift, scale, gate of attention, then of the MLP."""
    row_l: Tensor
    """Row of each token of this shard."""
    text_KD: Tensor
    rotation_L1r: Tensor
    video: Segments
    video_here: Segments
    """What of the video's segments lies in this context shard."""
    text: Segments


def widen(x: Tensor) -> Tensor:
    """float32, unless `x` is float64: the stream is normalised and summed in no less."""
    return x if x.dtype == torch.float64 else x.float()


def modulated_norm(x_lD: Tensor, shift_lD: Tensor, scale_lD: Tensor, eps: float) -> Tensor:
    """Layer norm without weights, then `x * scale + shift` (adaLN, Peebles and Xie 2023); in the type of `x_lD`."""
    norm_lD = layer_norm(widen(x_lD), x_lD.shape[-1:], eps=eps)
    return (norm_lD * scale_lD + shift_lD).to(x_lD.dtype)


def gated_add(x_lD: Tensor, update_lD: Tensor, gate_lD: Tensor) -> Tensor:
    """`x + gate * update`, summed wide and returned in the type of `x_lD`."""
    return (widen(x_lD) + gate_lD * widen(update_lD)).to(x_lD.dtype)


class Block(nn.Module):
    """Transformer block of Wan 2.1 and 2.2 (text to video), over a packed and possibly sharded sequence."""

    def __init__(self, num_heads: int, head_dim: int, ffn_dim: int, eps: float, layers: Layers) -> None:
        super().__init__()
        dim = num_heads * head_dim
        self.eps = eps
        self.layers = layers
        self.scale_shift_table = nn.Parameter(torch.zeros(6, dim))
        self.self_attention = Attention(num_heads, head_dim, eps, layers, to_text=False)
        self.cross_norm = nn.LayerNorm(dim, eps)
        self.cross_attention = Attention(num_heads, head_dim, eps, layers, to_text=True)
        self.mlp_in = layers.column_linear(dim, ffn_dim, gather_sequence=True)
        self.mlp_out = layers.row_linear(ffn_dim, dim)

    def modulations(self, context: BlockContext) -> tuple[Tensor, ...]:
        """Shift, 1 + scale, gate of attention, then of the MLP, of each token: six `[l, D]`."""
        table_R6D = context.table_R6D + widen(self.layers.replicated(self.scale_shift_table))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = table_R6D.unbind(1)
        rows = (shift, 1 + scale, gate, mlp_shift, 1 + mlp_scale, mlp_gate)
        return tuple(row_RD.index_select(0, context.row_l) for row_RD in rows)

    def forward(self, x_lD: Tensor, context: BlockContext) -> Tensor:
        shift_lD, scale_lD, gate_lD, mlp_shift_lD, mlp_scale_lD, mlp_gate_lD = self.modulations(context)

        h_lD = modulated_norm(x_lD, shift_lD, scale_lD, self.eps)
        h_lD = self.self_attention(h_lD, h_lD, context.video, context.video, context.rotation_L1r)
        x_lD = gated_add(x_lD, h_lD, gate_lD)

        weight_D, bias_D = (self.layers.replicated(p) for p in (self.cross_norm.weight, self.cross_norm.bias))
        h_lD = layer_norm(widen(x_lD), x_lD.shape[-1:], widen(weight_D), widen(bias_D), self.eps).to(x_lD.dtype)
        x_lD = x_lD + self.cross_attention(h_lD, context.text_KD, context.video_here, context.text, None)

        h_lD = modulated_norm(x_lD, mlp_shift_lD, mlp_scale_lD, self.eps)
        h_lD = self.mlp_out(gelu(self.mlp_in(h_lD), approximate="tanh"))
        return gated_add(x_lD, h_lD, mlp_gate_lD)
