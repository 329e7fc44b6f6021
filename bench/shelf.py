"""Sets of random latents that all loaders read, written once by `LatentWriter`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench import mixture
from data.latents import EncodedSample, LatentConfig, LatentWriter
from data.manifest import Manifest

CHANNELS = 16


@dataclass(frozen=True, kw_only=True)
class LatentSet:
    """How many samples there are, of what size."""

    title: str
    samples: int
    text_dim: int
    samples_per_shard: int
    small: bool
    """Grids of a few patches, as in the demo, in place of the mixed distribution."""


WAN = LatentSet(title="Wan", samples=160, text_dim=4096, samples_per_shard=16, small=False)
DEMO = LatentSet(title="demo", samples=3000, text_dim=384, samples_per_shard=128, small=True)


def grids(which: LatentSet) -> Iterator[tuple[tuple[int, int, int], int]]:
    """Latent grid and text tokens of each sample."""
    sizes = mixture.draw(which.samples)
    generator = torch.Generator().manual_seed(0)
    for grid, text in zip(sizes.grid_n3.tolist(), sizes.text_n.tolist(), strict=True):
        if which.small:
            t, h, w = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((1, 6), (3, 7), (4, 8)))
            yield (t, 2 * h, 2 * w), 8 + text % 32
        else:
            yield (grid[0], 2 * grid[1], 2 * grid[2]), text


def count_values(manifest: Manifest) -> int:
    """Numbers stored in latents and texts."""
    t, h, w = (manifest.column(name).astype(np.int64) for name in ("grid_t", "grid_h", "grid_w"))
    text = manifest.column("text_tokens").astype(np.int64) * manifest.identity.text_dim
    return int((CHANNELS * t * h * w + text).sum())


def stored_bytes(manifest: Manifest) -> int:
    """Bytes of the shards, with their headers and captions."""
    return sum(shard.bytes for shard in manifest.shards)


def write(which: LatentSet, folder: Path) -> Manifest:
    """Write the set; every sample has one caption."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    config = LatentConfig(samples_per_shard=which.samples_per_shard)
    writer = LatentWriter(folder, config, patch_size=mixture.PATCH_SIZE)
    for number, (grid, text) in enumerate(grids(which)):
        writer.write(
            EncodedSample(
                key=f"clip{number:06d}",
                latent_CTHW=torch.randn((CHANNELS, *grid), generator=generator),
                text={"caption": torch.randn(text, which.text_dim, generator=generator)},
                captions={"caption": f"clip {number}"},
                source=f"shot{number}",
                split="train",
                fps=16.0,
                meta={},
            )
        )
    writer.finish(
        null_text=torch.zeros(1, which.text_dim),
        identity={
            "codec": "c" * 64,
            "text": "t" * 64,
            "inputs": "i" * 64,
            "fps": 16.0,
            "strides": (4, 8, 8),
            "latent_channels": CHANNELS,
            "text_dim": which.text_dim,
            "caption_kinds": ("caption",),
        },
    )
    return Manifest.read(folder)
