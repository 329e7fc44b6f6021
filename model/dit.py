"""The video diffusion transformer: packed latent patches in, a velocity for each out.

Shapes: L tokens of a pack, M those of one context shard, l those of one shard of the residual stream, P values of a
patch, D width, R conditioning rows, K text tokens, E their width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from model.attention import Segments
from model.block import Block, BlockContext, modulated_norm, widen
from model.conditioning import Conditioning
from model.layers import DENSE, Layers
from model.packed import PackedInputs
from model.rope import rotation_table


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Size of a DiT. Raises ValueError for a size that cannot be built."""

    num_blocks: int
    num_heads: int
    head_dim: int
    ffn_dim: int
    text_dim: int
    """Width of the text encoder's embeddings."""
    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns of a patch."""
    time_freq_dim: int = 256
    """Sinusoid features of a noise level."""
    eps: float = 1e-6
    mup_base_dim: int | None = None
    """Width at which muP changes nothing (`model.mup`); None is the standard parametrisation at every width."""

    def __post_init__(self) -> None:
        sizes = ("num_blocks", "num_heads", "ffn_dim", "text_dim", "in_channels", "out_channels")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.head_dim < 6 or self.head_dim % 2:
            raise ValueError(
                f"model.head_dim is {self.head_dim}; rotary positions over time, height and width need an even "
                f"number of at least 6."
            )
        if self.time_freq_dim < 2 or self.time_freq_dim % 2:
            raise ValueError(f"model.time_freq_dim is {self.time_freq_dim}; sine and cosine need an even number >= 2.")
        if len(self.patch_size) != 3 or min(self.patch_size) < 1:
            raise ValueError(f"model.patch_size is {self.patch_size}; give three sizes (t, h, w) of at least 1.")
        if self.eps <= 0:
            raise ValueError(f"model.eps is {self.eps}; it must be above 0.")
        if self.mup_base_dim is not None and self.mup_base_dim < 1:
            raise ValueError(f"model.mup_base_dim is {self.mup_base_dim}; give a width of at least 1, or null.")

    @property
    def dim(self) -> int:
        """Width of the residual stream."""
        return self.num_heads * self.head_dim

    @property
    def width_factor(self) -> float:
        """Width over the base width of muP; 1 without it."""
        return 1.0 if self.mup_base_dim is None else self.dim / self.mup_base_dim

    @property
    def patch_values_in(self) -> int:
        """Values of a patch the model reads."""
        return prod(self.patch_size) * self.in_channels

    @property
    def patch_values_out(self) -> int:
        """Values of a patch the model predicts."""
        return prod(self.patch_size) * self.out_channels


@dataclass(frozen=True)
class Stage:
    """A run of a DiT's blocks, [first_block, end_block), and maybe either end."""

    first_block: int
    end_block: int
    has_input: bool
    has_output: bool

    @staticmethod
    def whole(config: DiTConfig) -> "Stage":
        return Stage(0, config.num_blocks, True, True)


RunBlock = Callable[[nn.Module, Tensor, BlockContext], Tensor]
"""Applies a block to the residual stream `[l, D]`."""


class PatchEmbedding(nn.Linear):
    """Patches to the residual stream."""

    def __init__(self, config: DiTConfig, layers: Layers) -> None:
        super().__init__(config.patch_values_in, config.dim)
        self.layers = layers

    def forward(self, patch_LP: Tensor) -> Tensor:
        """All patches of a pack to this rank's shard of the stream: `[L, P] -> [l, D]`."""
        # Scattered first, so that each rank embeds its own tokens only: the weights' gradients are then partial.
        patch_lP = self.layers.scatter_sequence(patch_LP)
        return linear(patch_lP, self.layers.replicated(self.weight), self.layers.replicated(self.bias))


class Head(nn.Module):
    """Final norm, modulated by the row's time embedding, and projection to patch values."""

    def __init__(self, config: DiTConfig, layers: Layers) -> None:
        super().__init__()
        self.eps, self.width_factor = config.eps, config.width_factor
        self.layers = layers
        self.scale_shift_table = nn.Parameter(torch.zeros(2, config.dim))
        self.projection = nn.Linear(config.dim, config.patch_values_out)

    def forward(self, x_lD: Tensor, time_RD: Tensor, row_l: Tensor) -> Tensor:
        """`[l, D] -> [l, P]`; `time_RD` and `row_l` say how each token is modulated."""
        table_2D = widen(self.layers.replicated(self.scale_shift_table))
        shift_RD, scale_RD = (widen(time_RD) + row_D for row_D in table_2D)
        shift_lD, scale_lD = (x_RD.index_select(0, row_l) for x_RD in (shift_RD, 1 + scale_RD))
        h_lD = modulated_norm(x_lD, shift_lD, scale_lD, self.eps)
        if self.width_factor != 1:
            h_lD = h_lD / self.width_factor  # muP's multiplier of the output weights
        return linear(h_lD, *(self.layers.replicated(p) for p in (self.projection.weight, self.projection.bias)))


class VideoDiT(nn.Module):
    """A DiT, or stages of one; weight-compatible with Wan 2.1 and 2.2 text-to-video (`model.wan_weights`).

    Parameter names are global: block 7 is `blocks.7` whatever the stage. `conditioning` is there once, however many
    stages this module holds. Weights hold torch's defaults until `model.init` or a checkpoint fills them.
    """

    def __init__(self, config: DiTConfig, *, layers: Layers = DENSE, stages: Sequence[Stage] | None = None) -> None:
        super().__init__()
        self.stages = tuple(stages or [Stage.whole(config)])
        assert all(0 <= s.first_block <= s.end_block <= config.num_blocks for s in self.stages), self.stages
        self.config = config
        self.layers = layers
        self.conditioning = Conditioning(config.dim, config.text_dim, config.time_freq_dim)
        if any(stage.has_input for stage in self.stages):
            self.patch_embedding = PatchEmbedding(config, layers)
        blocks = [i for stage in self.stages for i in range(stage.first_block, stage.end_block)]
        self.blocks = nn.ModuleDict(
            {str(i): Block(config.num_heads, config.head_dim, config.ffn_dim, config.eps, layers) for i in blocks}
        )
        if any(stage.has_output for stage in self.stages):
            self.head = Head(config, layers)
        self.run_block: RunBlock = nn.Module.__call__
        """How a block is applied: replaced to compute its activations again in the backward pass."""

    def forward(self, inputs: PackedInputs, hidden_lD: Tensor | None = None, *, stage: int = 0) -> Tensor:
        """Run the stage of that number among those this module holds.

        Returns the prediction `[M, P]` of this context shard's tokens where the stage has the output, else the
        residual stream `[l, D]`; `hidden_lD` is the stream of the stage before, None where the stage has the input.
        """
        part = self.stages[stage]
        assert (hidden_lD is None) == part.has_input, "the first stage reads patches, the others a stream"
        if hidden_lD is None:
            assert inputs.patch_LP is not None, "the first stage reads patches"
            hidden_lD = self.patch_embedding(inputs.patch_LP)
        row_l = self.layers.scatter_sequence(inputs.row_L)
        time_RD, table_R6D, text_KD = self.conditioning(inputs.time_R, inputs.is_condition_R, inputs.text_KE)
        device, lengths = hidden_lD.device, inputs.segment_lengths
        context = BlockContext(
            table_R6D=widen(self.layers.replicated(table_R6D)),
            row_l=row_l,
            text_KD=text_KD,
            rotation_L1r=rotation_table(inputs.position_L3, self.config.head_dim, hidden_lD.dtype),
            video=Segments.of(lengths, device),
            video_here=Segments.of(self.layers.local_lengths(lengths), device),
            text=Segments.of(inputs.text_lengths, device),
        )
        for index in range(part.first_block, part.end_block):
            hidden_lD = self.run_block(self.blocks[str(index)], hidden_lD, context)
        if not part.has_output:
            return hidden_lD
        prediction_lP = self.head(hidden_lD, self.layers.replicated(time_RD), row_l)
        return self.layers.gather_sequence(prediction_lP)
