"""The mixed distribution of images and clips that the data plane is measured on: sizes alone, nothing is stored."""

from dataclasses import dataclass

import numpy as np

IMAGE_SIDES = (16, 32, 48, 64)
"""Patches a side: 256, 1024, 2304 and 4096 tokens."""
CLIP_SIDES = ((16, 16), (30, 52))
"""Rows and columns of patches of a 256px and a 480p frame: 256 and 1,560 tokens a latent frame."""
SHARES = (0.3, 0.5, 0.2)
"""Images, 256px clips, 480p clips."""
MEDIAN_FRAMES = (60, 50)
SPREAD = 0.45
"""Of the logarithm of the number of frames; with it a sample has 6.9 thousand tokens on average."""
FRAMES_CAP = 81
"""Of 480p clips: 21 latent frames, 32,760 tokens."""
LARGEST = 32_760
PATCH_SIZE = (1, 2, 2)
TEXT_MEDIAN, TEXT_CAP = 100, 512


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Sizes of n samples."""

    grid_n3: np.ndarray
    """Patches in time, height and width."""
    text_n: np.ndarray
    """Text tokens."""

    @property
    def tokens_n(self) -> np.ndarray:
        return self.grid_n3.prod(axis=1, dtype=np.int64)


def draw(samples: int, *, seed: int = 0) -> Mixture:
    """Sizes of this many samples; the same for the same seed."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, size=samples, p=SHARES)
    side = np.array(IMAGE_SIDES)[rng.integers(len(IMAGE_SIDES), size=samples)]
    grid_n3 = np.stack([np.ones_like(side), side, side], axis=1)
    for clip, (median, (rows, columns)) in enumerate(zip(MEDIAN_FRAMES, CLIP_SIDES, strict=True), start=1):
        chosen = kind == clip
        frames = np.rint(median * np.exp(SPREAD * rng.standard_normal(chosen.sum()))).astype(np.int64)
        cap = FRAMES_CAP if clip == 2 else 4 * (LARGEST // (rows * columns) - 1) + 1
        latent_frames = 1 + (np.clip(frames, 1, cap) - 1) // 4
        grid_n3[chosen] = np.stack([latent_frames, np.full_like(frames, rows), np.full_like(frames, columns)], axis=1)
    text = np.rint(TEXT_MEDIAN * np.exp(SPREAD * rng.standard_normal(samples))).astype(np.int64)
    return Mixture(grid_n3=grid_n3, text_n=np.clip(text, 1, TEXT_CAP))
