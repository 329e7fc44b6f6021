"""How much arithmetic a DiT does and how many parameters it has, in closed form.

Symbols: s video tokens and c text tokens of a segment, h width, f MLP width. FLOPs are those of matrix
multiplications, a multiplication and an addition counted as two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from model.dit import DiTConfig

TRAINING_FACTOR = 3
"""Forward and backward over forward: backward forms two products for each of forward's."""


def forward_flops(config: DiTConfig, *, video_tokens: Sequence[int], text_tokens: Sequence[int], rows: int) -> int:
    """Forward FLOPs of a pack with these tokens in each segment and `rows` conditioning rows."""
    assert len(video_tokens) == len(text_tokens)
    h, f = config.dim, config.ffn_dim
    s, c = sum(video_tokens), sum(text_tokens)
    # Attention is block-diagonal: the sum of squares, not the square of the sum.
    self_pairs = sum(n * n for n in video_tokens)
    cross_pairs = sum(n * m for n, m in zip(video_tokens, text_tokens, strict=True))
    self_attention = 8 * s * h * h + 4 * self_pairs * h
    cross_attention = 4 * s * h * h + 4 * c * h * h + 4 * cross_pairs * h
    mlp = 4 * s * h * f
    patches = 2 * s * h * (config.patch_values_in + config.patch_values_out)
    text = 2 * c * (config.text_dim * h + h * h)
    time = 2 * rows * (config.time_freq_dim * h + h * h + 6 * h * h)
    return config.num_blocks * (self_attention + cross_attention + mlp) + patches + text + time


def training_flops(config: DiTConfig, *, video_tokens: Sequence[int], text_tokens: Sequence[int], rows: int) -> int:
    """FLOPs of a training step's forward and backward over the pack; recomputed activations are not counted."""
    return TRAINING_FACTOR * forward_flops(config, video_tokens=video_tokens, text_tokens=text_tokens, rows=rows)


def cost_coefficients(config: DiTConfig) -> dict[str, float]:
    """Forward FLOPs per video token, per squared length of a segment and per text token.

    What pairs of video and text tokens and the conditioning rows cost is left out: a few parts in a hundred.
    """
    h, f = config.dim, config.ffn_dim
    return {
        "linear": config.num_blocks * (12 * h * h + 4 * h * f)
        + 2 * h * (config.patch_values_in + config.patch_values_out),
        "quadratic": config.num_blocks * 4 * h,
        "text": config.num_blocks * 4 * h * h + 2 * (config.text_dim * h + h * h),
    }


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of a DiT."""

    total: int
    non_embedding: int
    """Those of the blocks: what scaling laws call N. Patch, time and text embeddings and the head are left out."""


def parameter_count(config: DiTConfig) -> ParameterCount:
    """Count parameters from the sizes alone."""
    h, f = config.dim, config.ffn_dim
    attention = 4 * (h * h + h) + 2 * h
    block = 2 * attention + (2 * h * f + f + h) + 2 * h + 6 * h
    patches = config.patch_values_in * h + h
    time = (config.time_freq_dim * h + h) + (h * h + h) + 6 * (h * h + h) + h
    text = (config.text_dim * h + h) + (h * h + h)
    head = (h + 1) * config.patch_values_out + 2 * h
    blocks = config.num_blocks * block
    return ParameterCount(total=blocks + patches + time + text + head, non_embedding=blocks)
