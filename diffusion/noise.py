"""Random draws keyed by what they are for, so that they do not depend on the layout of a run."""

import hashlib
import json

import torch
from torch import Tensor

SEED_BITS = 32
"""PyTorch's CPU generator keeps no more of a seed than this."""


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by a hash of `key`, e.g. (run seed, epoch, sample key, "noise").

    The same key gives the same stream in any process. Two of n keys share a stream with probability about
    n^2 / 2^33, which is harmless for noise: the samples that carry it differ.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[: SEED_BITS // 8], "big"))


def draw_noise(shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Standard normal float32 noise of `shape`, a pure function of its arguments."""
    return torch.randn(shape, generator=keyed_generator(*key), dtype=torch.float32)
