"""How much arithmetic a DiT does and how many parameters it has, in closed form.

Symbols: s video tokens and c text tokens of a segment, h width, f MLP width. FLOPs are those of matrix
multiplications, a multiplication and an addition counted as two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.dit import DiTConfig

TRAINING_FACTOR = 3
"""Forward and backward over forward: backward forms two products for each of forward's."""


@dataclass(frozen=True, kw_only=True)
class PackSums:
    """All of some packs that their arithmetic depends on; it is linear in these, so that those of packs add up.

    Attention is block-diagonal: sums of squares and of products, not the square or product of sums.
    """

    video: float
    """Video tokens."""
    text: float
    video_pairs: float
    """Sum over segments of s^2."""
    text_pairs: float
    """Sum over segments of s * c."""
    rows: float
    """Conditioning rows."""

    @staticmethod
    def of(video_tokens: Sequence[int], text_tokens: Sequence[int], rows: int) -> "PackSums":
        """Of a pack with these tokens in each segment."""
        return PackSums(
            video=sum(video_tokens),
            text=sum(text_tokens),
            video_pairs=sum(n * n for n in video_tokens),
            text_pairs=sum(n * m for n, m in zip(video_tokens, text_tokens, strict=True)),
            rows=rows,
        )


def block_flops(config: DiTConfig, sums: PackSums) -> float:
    """Forward FLOPs of one block."""
    h, f = config.dim, config.ffn_dim
    self_attention = 8 * sums.video * h * h + 4 * sums.video_pairs * h
    cross_attention = 4 * sums.video * h * h + 4 * sums.text * h * h + 4 * sums.text_pairs * h
    return self_attention + cross_attention + 4 * sums.video * h * f


def ends_flops(config: DiTConfig, sums: PackSums) -> float:
    """Forward FLOPs of all but the blocks: patches in and out, text, and the rows with their one modulation."""
    h = config.dim
    patches = 2 * sums.video * h * (config.patch_values_in + config.patch_values_out)
    text = 2 * sums.text * (config.text_dim * h + h * h)
    time = 2 * sums.rows * (config.time_freq_dim * h + h * h + 6 * h * h)
    return patches + text + time


def flops_of(config: DiTConfig, sums: PackSums) -> float:
    """Forward FLOPs of packs with these sums; a whole number where they are."""
    return config.num_blocks * block_flops(config, sums) + ends_flops(config, sums)


def forward_flops(config: DiTConfig, *, video_tokens: Sequence[int], text_tokens: Sequence[int], rows: int) -> int:
    """Forward FLOPs of a pack with these tokens in each segment and `rows` conditioning rows."""
    return int(flops_of(config, PackSums.of(video_tokens, text_tokens, rows)))


def training_flops(config: DiTConfig, *, video_tokens: Sequence[int], text_tokens: Sequence[int], rows: int) -> int:
    """Model FLOPs of a training step's forward and backward over the pack; what is computed again is not counted."""
    return TRAINING_FACTOR * forward_flops(config, video_tokens=video_tokens, text_tokens=text_tokens, rows=rows)


def hardware_flops(
    config: DiTConfig, sums: PackSums, *, recompute: Literal["none", "selective", "full"], recompute_blocks: int
) -> float:
    """FLOPs that training really does on packs of these sums, `recompute_blocks` blocks of all being recomputed.

    Selective recomputation keeps every matrix product, so that it adds none.
    """
    again = recompute_blocks * block_flops(config, sums) if recompute == "full" else 0
    return TRAINING_FACTOR * flops_of(config, sums) + again


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
    """Parameters of a DiT, by kind."""

    blocks: int
    patches: int
    time: int
    """Embedding of noise levels and of the condition, and the modulation all blocks share."""
    text: int
    head: int

    @property
    def total(self) -> int:
        return self.blocks + self.patches + self.time + self.text + self.head

    @property
    def non_embedding(self) -> int:
        """Those of the blocks: what scaling laws call N."""
        return self.blocks


def parameter_count(config: DiTConfig) -> ParameterCount:
    """Count parameters from the sizes alone."""
    h, f = config.dim, config.ffn_dim
    attention = 4 * (h * h + h) + 2 * h
    block = 2 * attention + (2 * h * f + f + h) + 2 * h + 6 * h
    return ParameterCount(
        blocks=config.num_blocks * block,
        patches=config.patch_values_in * h + h,
        time=(config.time_freq_dim * h + h) + (h * h + h) + 6 * (h * h + h) + h,
        text=(config.text_dim * h + h) + (h * h + h),
        head=(h + 1) * config.patch_values_out + 2 * h,
    )
