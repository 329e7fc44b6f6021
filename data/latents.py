"""Latent shards: one folder per token bucket, written as a whole with their manifest."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import xxhash
from torch import Tensor

from data.manifest import NULL_TEXT_NAME, Identity, write_manifest
from data.rows import MEMBERS, SCHEMA
from data.shards import Member, PlannedShard, ShardInfo, ShardWriter, check_key, write_bytes
from data.split import Split

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """How latents are stored."""

    samples_per_shard: int = 256
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """Of latents and of text embeddings; read back as float32."""

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise ValueError(f"shards.samples_per_shard={self.samples_per_shard} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """What is stored of one clip: a normalised latent, and each caption with its embedding `[n, E]`."""

    key: str
    latent_CTHW: Tensor
    text: dict[str, Tensor]
    captions: dict[str, str]
    source: str
    split: Split
    fps: float
    """Of the frames that were encoded."""
    meta: dict[str, Any]


def bucket_of(video_tokens: int, modality: str) -> str:
    """Name of the bucket: a modality and a token range between neighbouring powers of sqrt(2), ends included."""
    assert video_tokens >= 1
    # k = floor(log_sqrt2(n)), exactly: 2**k <= n**2 < 2**(k + 1).
    k = (video_tokens * video_tokens).bit_length() - 1
    return f"{modality}-{_ceil_sqrt(2**k):06d}-{_ceil_sqrt(2 ** (k + 1)) - 1:06d}"


def modality_of(latent_shape: Sequence[int]) -> str:
    """Of (C, T, H, W)."""
    return "image" if latent_shape[1] == 1 else "video"


def _ceil_sqrt(n: int) -> int:
    return math.isqrt(n - 1) + 1


class LatentWriter:
    """Writes samples into shards by bucket, then the manifest. `folder` is scratch until its maker renames it.

    With `is_planned` only the manifest is written, of samples whose values are not known yet, but their shapes.
    """

    def __init__(
        self, folder: Path, config: LatentConfig, *, patch_size: tuple[int, int, int], is_planned: bool = False
    ) -> None:
        self.folder, self.config, self.patch_size, self.is_planned = folder, config, patch_size, is_planned
        self.shards: list[ShardInfo] = []
        self._open: dict[str, ShardWriter | PlannedShard] = {}
        self._count: dict[str, int] = {}
        self.columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        """The manifest's rows so far."""
        self._keys: set[str] = set()
        self.caption_kinds: set[str] = set()
        self.latent_channels = 0
        """Of all samples; 0 before the first."""

    def write(self, sample: EncodedSample) -> None:
        """Append one sample. Raises ValueError where it must not be stored: not finite, no text, a key used twice."""
        check_key(sample.key)
        if sample.key in self._keys:
            raise ValueError(f"duplicate key: {sample.key!r} was written before")
        channels = sample.latent_CTHW.shape[0]
        if self.latent_channels not in (0, channels):
            raise ValueError(f"wrong channels: {channels}, but earlier samples have {self.latent_channels}")
        stored = self._stored(sample)
        tokens = video_tokens(sample.latent_CTHW, self.patch_size)
        bucket = bucket_of(tokens, modality_of(sample.latent_CTHW.shape))
        writer = self._writer(bucket)
        places = writer.write(sample.key, stored)
        self._keys.add(sample.key)
        self.caption_kinds |= sample.text.keys()
        self.latent_channels = channels
        row = manifest_row(
            {name: getattr(sample, name) for name in ("key", "source", "split", "fps")} | {"shard": writer.name},
            latent_shape=sample.latent_CTHW.shape,
            tokens=tokens,
            text_tokens=max(len(text) for text in sample.text.values()),
            places=places,
        )
        for name, column in self.columns.items():
            column.append(row[name])
        if writer.count >= self.config.samples_per_shard:
            self._close(bucket)

    def _stored(self, sample: EncodedSample) -> dict[str, bytes]:
        """Extension -> bytes."""
        if not sample.text:
            raise ValueError("no text: a sample needs at least one caption kind")
        latent = latent_members(sample.latent_CTHW, dtype=self.config.dtype)
        text = text_members(sample.text, sample.captions, dtype=self.config.dtype)
        meta = sample.meta | {
            "fps": sample.fps,
            "captions": sample.captions,
            "source": sample.source,
            "split": sample.split,
        }
        own = {} if self.is_planned else {"json": json.dumps(meta).encode()}
        return {MEMBERS[member]: data for member, data in (latent | text | own).items()}

    def _writer(self, bucket: str) -> ShardWriter | PlannedShard:
        if bucket not in self._open:
            number = self._count.get(bucket, 0)
            self._count[bucket] = number + 1
            name = f"{bucket}/{number:06d}.tar"
            self._open[bucket] = PlannedShard(name) if self.is_planned else ShardWriter(self.folder, name)
        return self._open[bucket]

    def _close(self, bucket: str) -> None:
        self.shards.append(self._open.pop(bucket).close())

    def flush(self) -> None:
        """Close all shards, full or not; later samples go to new ones."""
        for bucket in sorted(self._open):
            self._close(bucket)

    def since(self, *, row: int, shard: int) -> dict[str, Any]:
        """What was written from that row and that shard on, for JSON and `restore`; no shard may be open."""
        assert not self._open, "flush first"
        return {
            "columns": {name: column[row:] for name, column in self.columns.items()},
            "shards": [asdict(info) for info in self.shards[shard:]],
            "caption_kinds": sorted(self.caption_kinds),
            "latent_channels": self.latent_channels,
        }

    def restore(self, written: dict[str, Any]) -> None:
        """Go on after what another writer wrote to this folder. ValueError where a shard of it is not there whole."""
        for described in written["shards"]:
            info = ShardInfo(**described)
            path = self.folder / info.name
            if not path.is_file() or path.stat().st_size != info.bytes:
                raise ValueError(f"{path} is missing or cut off: delete {self.folder} to encode from the start")
            self.shards.append(info)
            bucket = info.name.rpartition("/")[0]
            self._count[bucket] = self._count.get(bucket, 0) + 1
        for name, column in self.columns.items():
            column += written["columns"][name]
        self._keys |= set(written["columns"]["key"])
        self.caption_kinds |= set(written["caption_kinds"])
        self.latent_channels = written["latent_channels"]

    def finish(self, *, null_text: Tensor, identity: dict[str, Any]) -> str:
        """Close the shards, store the null embedding `[n, E]` and the manifest; returns the manifest's hash.

        `identity` is every field of `Identity` that only the caller knows.
        """
        self.flush()
        null = safetensors.torch.save({"text": null_text.detach().cpu().to(DTYPES[self.config.dtype]).contiguous()})
        write_bytes(self.folder / NULL_TEXT_NAME, null)
        whole = Identity(patch_size=self.patch_size, null_text_xxh3=xxhash.xxh3_64_intdigest(null), **identity)
        shards = sorted(self.shards, key=lambda shard: shard.name)
        return write_manifest(self.folder, self.columns, identity=whole, shards=shards)


def latent_members(latent_CTHW: Tensor, *, dtype: str) -> dict[str, bytes]:
    """The stored member that depends on the frames. ValueError where it is not finite."""
    return {"latent": _tensor_bytes({"latent": latent_CTHW}, dtype)}


def text_members(text: Mapping[str, Tensor], captions: Mapping[str, str], *, dtype: str) -> dict[str, bytes]:
    """The stored members that depend on the captions alone. ValueError where they are not finite."""
    return {"json": json.dumps({"captions": captions}).encode(), "text": _tensor_bytes(text, dtype)}


def _tensor_bytes(tensors: Mapping[str, Tensor], dtype: str) -> bytes:
    stored = {name: value.detach().cpu().to(DTYPES[dtype]).contiguous() for name, value in tensors.items()}
    for name, tensor in stored.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"not finite: {name} has NaN or Inf as {dtype}")
    return safetensors.torch.save(stored)


def video_tokens(latent_CTHW: Tensor, patch_size: tuple[int, int, int]) -> int:
    """Tokens after patching; ValueError where the latent grid is no multiple of the patch."""
    grid = latent_CTHW.shape[1:]
    if any(n % p for n, p in zip(grid, patch_size, strict=True)):
        raise ValueError(f"off the lattice: latent grid {tuple(grid)} is no multiple of the patch {patch_size}")
    return grid.numel() // (patch_size[0] * patch_size[1] * patch_size[2])


def manifest_row(
    said: dict[str, Any], *, latent_shape: Sequence[int], tokens: int, text_tokens: int, places: Mapping[str, Member]
) -> dict[str, Any]:
    """A sample's row of the manifest; `said` is key, shard, source, split and fps, `places` is by extension."""
    modality = modality_of(latent_shape)
    row = said | {"modality": modality, "bucket": bucket_of(tokens, modality)}
    row |= {"video_tokens": tokens, "text_tokens": text_tokens}
    row |= dict(zip(("grid_t", "grid_h", "grid_w"), latent_shape[1:], strict=True))
    for member, extension in MEMBERS.items():
        place = places[extension]
        row |= {f"{member}_offset": place.offset, f"{member}_size": place.size, f"{member}_xxh3": place.xxh3}
    return row
