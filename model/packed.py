"""The packed sequence a DiT reads: samples of any size laid end to end.

Shapes: L tokens of the pack (padding included), P values of a patch, R conditioning rows, S segments
(samples, plus one of padding where the pack is not full), K text tokens of all segments, D_text their width.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PackedInputs:
    """One pack. Segments do not see each other.

    A segment of padding has zero patches, a conditioning row of its own and one zero text token, so that nothing
    downstream needs a special case; it carries no loss.
    """

    patch_LP: Tensor | None
    """Noised latent patches, each laid out (pt ph pw c); None where no stage of this rank reads them."""
    position_L3: Tensor
    """Place (t, h, w) inside the sample: int64 patch indices, or float64 where time is not counted in frames."""
    row_L: Tensor
    """int64 conditioning row of each token."""
    segment_lengths: tuple[int, ...]
    """Tokens of each segment, S entries that sum to L."""
    time_R: Tensor
    """Noise level of each row in [0, 1]: 0 is clean data, 1 is noise."""
    is_condition_R: Tensor
    """bool; True where the row is a condition (no loss), which may carry slight noise."""
    text_KE: Tensor
    """Text embeddings of all segments end to end."""
    text_lengths: tuple[int, ...]
    """Text tokens of each segment, S entries >= 1 that sum to K."""

    @property
    def num_tokens(self) -> int:
        return self.position_L3.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "PackedInputs":
        """Move all tensors; floating-point ones also take `dtype`, but for positions and time."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                keep = not value.is_floating_point() or field.name in ("time_R", "position_L3")
                moved[field.name] = on_device(value if keep else value.to(dtype), device)
        return replace(self, **moved)


def on_device(x: Tensor, device: torch.device | str) -> Tensor:
    """`x` on `device`; to a GPU by way of page-locked memory, so that the host goes on while it is copied."""
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def patchify(x_CTHW: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """`[C, T, H, W] -> [T/pt * H/ph * W/pw, pt * ph * pw * C]`, tokens ordered t, h, w."""
    pt, ph, pw = patch_size
    return rearrange(x_CTHW, "c (t pt) (h ph) (w pw) -> (t h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)


def unpatchify(patch_LP: Tensor, grid: tuple[int, int, int], patch_size: tuple[int, int, int]) -> Tensor:
    """Inverse of `patchify`; `grid` is the patch grid (t, h, w)."""
    (t, h, w), (pt, ph, pw) = grid, patch_size
    return rearrange(patch_LP, "(t h w) (pt ph pw c) -> c (t pt) (h ph) (w pw)", t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)


def patch_positions(grid: tuple[int, int, int], frame_step: float | None = None) -> Tensor:
    """Patch indices (t, h, w) in token order: int64 `[t * h * w, 3]`.

    With `frame_step`, neighbouring frames are so far apart on the temporal axis, and the result is float64.
    """
    axes = [torch.arange(n) for n in grid]
    position_L3 = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    if frame_step is None:
        return position_L3
    return position_L3 * torch.tensor([frame_step, 1.0, 1.0], dtype=torch.float64)
