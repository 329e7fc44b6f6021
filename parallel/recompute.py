"""Activations that are computed again in the backward pass instead of kept."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.block import BlockContext
from model.dit import VideoDiT
from parallel.dims import ParallelDims

COSTLY = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.torch_attn._varlen_attn.default,
    }
)
"""What selective recomputation keeps: matmuls and attention. Norms, modulations, GELU and casts are computed again."""


def set_recompute(stage: VideoDiT, dims: ParallelDims) -> None:
    """Have the first `recompute_blocks` blocks of each of a module's stages recompute as `dims` say."""
    if dims.recompute == "none":
        return
    wanted = dims.recompute_blocks
    chosen = {
        stage.blocks[str(index)]
        for part in stage.stages
        for index in range(part.first_block, part.end_block)
        if wanted is None or index - part.first_block < wanted
    }
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # nothing here draws numbers
    if dims.recompute == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep)

    def run(block: nn.Module, x_lD: Tensor, context: BlockContext) -> Tensor:
        if block in chosen and torch.is_grad_enabled():
            return checkpoint(block, x_lD, context, **options)
        return block(x_lD, context)

    stage.run_block = run


def _keep(_context: Any, operation: Any, *_args: Any, **_options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in COSTLY else CheckpointPolicy.PREFER_RECOMPUTE
