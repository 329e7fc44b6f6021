"""What a DiT is conditioned on: noise levels and text.

Shapes: R conditioning rows, F sinusoid features, D width, K text tokens, E their width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

TIME_SCALE = 1000.0
"""Wan counts noise levels in thousandths."""


def time_sinusoid(time_R: Tensor, num_features: int, *, max_period: float = 10000.0) -> Tensor:
    """Cosines then sines of a noise level in [0, 1]: `[R, F]` in the type of `time_R`, float32 at least.

    The frequencies are float32, as in the weights' first home; a float64 time keeps float64 angles.
    """
    half = num_features // 2
    steps = torch.arange(half, dtype=torch.float32, device=time_R.device)
    frequency_F = torch.exp(-math.log(max_period) * steps / half)
    angle_RF = (time_R * TIME_SCALE)[:, None] * frequency_F
    return torch.cat([angle_RF.cos(), angle_RF.sin()], dim=-1)


class Conditioning(nn.Module):
    """Embeds the conditioning table and the text; the same on every tensor rank and pipeline stage."""

    def __init__(self, dim: int, text_dim: int, time_freq_dim: int) -> None:
        super().__init__()
        self.time_freq_dim = time_freq_dim
        self.time_in = nn.Linear(time_freq_dim, dim)
        self.time_out = nn.Linear(dim, dim)
        self.condition_embedding = nn.Parameter(torch.zeros(dim))
        self.modulation = nn.Linear(dim, 6 * dim)
        self.text_in = nn.Linear(text_dim, dim)
        self.text_out = nn.Linear(dim, dim)

    def forward(self, time_R: Tensor, is_condition_R: Tensor, text_KE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding `[R, D]` and modulations `[R, 6, D]` of the rows, and the text `[K, D]`."""
        return *self.embed_time(time_R, is_condition_R), self.embed_text(text_KE)

    def embed_time(self, time_R: Tensor, is_condition_R: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding of each row `[R, D]`, which the head reads, and its six modulations `[R, 6, D]` for the blocks."""
        sinusoid_RF = time_sinusoid(time_R, self.time_freq_dim).to(self.time_in.weight.dtype)
        time_RD = self.time_out(silu(self.time_in(sinusoid_RF)))
        time_RD = time_RD + is_condition_R[:, None] * self.condition_embedding
        return time_RD, self.modulation(silu(time_RD)).unflatten(-1, (6, -1))

    def embed_text(self, text_KE: Tensor) -> Tensor:
        """`[K, E] -> [K, D]`."""
        return self.text_out(gelu(self.text_in(text_KE), approximate="tanh"))
