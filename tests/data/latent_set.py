"""Small sets of latent shards for tests."""

from pathlib import Path

import torch

from data.latents import EncodedSample, LatentConfig, LatentWriter
from data.manifest import Manifest
from data.shards import new_folder

GRIDS = [(1, 2, 2), (1, 4, 6), (2, 4, 4), (3, 4, 6), (5, 4, 6), (5, 8, 8), (2, 2, 14)]


def sample(number, *, channels=4, text_dim=8, grid=None, heldout_every=0):
    """Random but fixed content; size from `number` unless given."""
    generator = torch.Generator().manual_seed(number)
    grid = grid or GRIDS[number % len(GRIDS)]
    texts = {
        kind: torch.randn(2 + (number + i) % 5, text_dim, generator=generator)
        for i, kind in enumerate(("short", "descriptive"))
    }
    heldout = heldout_every and number % heldout_every == 0
    return EncodedSample(
        key=f"film/clip{number:04d}",
        latent_CTHW=torch.randn(channels, *grid, generator=generator),
        text=texts,
        captions={"short": f"clip {number}", "descriptive": f"a line about clip {number}"},
        source=f"shot{number}",
        split="heldout" if heldout else "train",
        fps=8.0,
        meta={},
    )


def identity(**changes):
    values = {"codec": "c" * 64, "text": "t" * 64, "inputs": "i" * 64, "fps": 8.0, "strides": (4, 8, 8)}
    return values | {"latent_channels": 4, "text_dim": 8, "caption_kinds": ("short", "descriptive")} | changes


def write_latents(folder, samples, *, samples_per_shard=8, dtype="float32", **changes):
    """A folder of latent shards; returns its manifest."""
    with new_folder(folder) as scratch:
        config = LatentConfig(samples_per_shard=samples_per_shard, dtype=dtype)
        writer = LatentWriter(scratch, config, patch_size=(1, 2, 2))
        for one in samples:
            writer.write(one)
        writer.finish(null_text=torch.ones(2, 8), identity=identity(**changes))
    return Manifest.read(folder)


def damaged(tmp_path, member, *, key="film/clip0007"):
    """A set with one byte of one member of one sample changed."""
    manifest = write_latents(tmp_path / "set", [sample(i) for i in range(20)])
    row = manifest.keys().index(key)
    place = manifest.row(row)
    path = Path(manifest.folder) / place["shard"]
    data = bytearray(path.read_bytes())
    data[place[f"{member}_offset"] + place[f"{member}_size"] - 2] ^= 1
    path.write_bytes(data)
    return Manifest.read(manifest.folder), row, path
