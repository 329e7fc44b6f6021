"""Initial weights, by name: any sharding, stage split or order of construction starts from the same numbers."""

import hashlib

import torch
from torch import Tensor, nn

from model.mup import role_of

ZERO_WEIGHTS = ("conditioning.modulation.weight", "head.projection.weight")
"""Matrices that start at zero: with the zero tables every gate is closed (adaLN-Zero, Peebles and Xie 2023, section
3.2) and the prediction is zero. Cross-attention has no gate and starts open: text then counts from the first steps."""


def initial_value(name: str, shape: tuple[int, ...], seed: int, mup_base_dim: int | None = None) -> Tensor:
    """Initial value in float32 of the whole (unsharded) parameter `name` of a DiT; a pure function of its arguments.

    Norm weights are one; biases, modulation tables, the condition embedding and `ZERO_WEIGHTS` zero; other matrices
    `[out, in]` are normal with variance 2 / (in + out) (Glorot and Bengio 2010, eq. 12). With muP those from outside to
    the width keep the variance that they have at its base; all others fall as 1 / width by themselves.
    """
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.float32, device="cpu")
    if name in ZERO_WEIGHTS or not name.endswith(".weight"):
        return torch.zeros(shape, dtype=torch.float32, device="cpu")
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    fan_out, fan_in = shape
    if mup_base_dim is not None and role_of(name) == "input":
        fan_out = mup_base_dim
    return torch.randn(shape, generator=generator, dtype=torch.float32) * (2 / (fan_in + fan_out)) ** 0.5


@torch.no_grad()
def init_weights(module: nn.Module, seed: int, mup_base_dim: int | None = None) -> None:
    """Fill every parameter of an unsharded DiT or stage of one with its initial value."""
    for name, parameter in module.named_parameters():
        parameter.copy_(initial_value(name, tuple(parameter.shape), seed, mup_base_dim))
