"""Packs and weights made up to prove layouts equal: unequal content, and nothing at zero. Light: it imports no engine.

Shapes: L tokens of a pack, P values of a patch.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from model.dit import DiTConfig
from model.packed import PackedInputs, patch_positions

MOST_FRAMES = 4
FRAME_STEPS = (None, 1.5, 0.8)
"""By pack: temporal positions count latent frames, or lie between them as those of clips of another rate do."""
CONDITION_TIME = 0.02
"""Noise level of a condition frame: nearly clean, so that a row that is dropped is missed."""


@dataclass(frozen=True)
class SyntheticPack:
    """A microbatch."""

    inputs: PackedInputs
    target_LP: Tensor
    weight_L: Tensor


def synthetic_pack(config: DiTConfig, tokens: int, number: int) -> SyntheticPack:
    """Pack `number` in float64: images and clips, a row per frame, clean conditions, uneven weights, padding,
    whole and fractional positions.

    A pure function of its arguments. Every fifth pack is nearly all padding.
    """
    draw = torch.Generator().manual_seed(1000 + number)
    grids = [(1, 1, 1)] if number % 5 == 4 else list(_grids(tokens, draw))
    lengths = [prod(grid) for grid in grids]
    rows, positions = [], []
    times: list[float] = []
    conditions: list[bool] = []
    for t, h, w in grids:
        rows.append(torch.arange(t).repeat_interleave(h * w) + len(times))
        positions.append(patch_positions((t, h, w), FRAME_STEPS[number % len(FRAME_STEPS)]))
        is_condition = [t > 1 and frame == 0 for frame in range(t)]
        times += [CONDITION_TIME if c else float(torch.rand((), generator=draw)) for c in is_condition]
        conditions += is_condition
    if padding := tokens - sum(lengths):
        rows.append(torch.full((padding,), len(times)))
        positions.append(torch.zeros(padding, 3, dtype=positions[0].dtype))
        times.append(0.0)
        conditions.append(False)
        lengths.append(padding)
    row_L = torch.cat(rows)
    text_lengths = [1 + int(torch.randint(0, 5, (), generator=draw)) for _ in lengths]
    patch_LP = torch.randn(tokens, config.patch_values_in, generator=draw, dtype=torch.float64)
    text_KE = torch.randn(sum(text_lengths), config.text_dim, generator=draw, dtype=torch.float64)
    weight_L = torch.rand(tokens, generator=draw, dtype=torch.float64) + 0.1
    weight_L[torch.tensor(conditions)[row_L]] = 0
    if padding:
        patch_LP[-padding:], weight_L[-padding:] = 0, 0
    inputs = PackedInputs(
        patch_LP=patch_LP,
        position_L3=torch.cat(positions),
        row_L=row_L,
        segment_lengths=tuple(lengths),
        time_R=torch.tensor(times, dtype=torch.float64),
        is_condition_R=torch.tensor(conditions),
        text_KE=text_KE,
        text_lengths=tuple(text_lengths),
    )
    target_LP = torch.randn(tokens, config.patch_values_out, generator=draw, dtype=torch.float64)
    return SyntheticPack(inputs, target_LP, weight_L)


def lively_value(name: str, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """A logical parameter in float64 with nothing at zero, so that every path carries gradient."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
    # Of a size that keeps activations near 1 at any width.
    fan_in = shape[-1] if name.endswith(".weight") and len(shape) > 1 else 1
    value = torch.randn(shape, generator=draw, dtype=torch.float64) * (0.2 if fan_in == 1 else fan_in**-0.5)
    return value + 1 if name.endswith("norm.weight") else value


def _grids(tokens: int, draw: torch.Generator) -> Iterator[tuple[int, int, int]]:
    """Patch grids of images and clips that fill a pack but for a few tokens."""
    longest_side = max(int((tokens / 3) ** 0.5), 1)
    left = tokens
    while left > tokens // 8:
        t, h, w = (1 + int(torch.randint(0, n, (), generator=draw)) for n in (MOST_FRAMES, longest_side, longest_side))
        t = min(t, left)
        h = min(h, left // t)
        w = min(w, left // (t * h))
        left -= t * h * w
        yield t, h, w
