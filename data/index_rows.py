"""The manifest's rows of latent shards made elsewhere, and what is wrong between samples and between shards."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from data.latent_shard import ShardContents, StoredSample
from data.latents import manifest_row, modality_of, video_tokens
from data.report import Problems
from data.rows import SCHEMA
from data.shards import ShardInfo
from data.split import Split, split_of

SUMS_NAME = "SHA256SUMS"
_DEFAULT_HELDOUT = 0.1
_FPS_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """What the shards do not say of themselves."""

    codec: str
    text: str
    fps: float | None
    """Of all clips; None where the json of each says its own."""
    strides: tuple[int, int, int]
    patch_size: tuple[int, int, int]
    heldout_fraction: float | None = None
    """None: as each json says, and a tenth of the sources where it says nothing."""

    def __post_init__(self) -> None:
        if not self.codec or not self.text:
            raise ValueError(f"codec={self.codec!r} and text={self.text!r} must be named: the trainer compares them")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"fps={self.fps} must be above 0")
        for name in ("strides", "patch_size"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must all be at least 1")
        split_of("", self.heldout_fraction or 0.0)


class IndexedSet:
    """Rows of all good samples, and all that is wrong; filled shard by shard."""

    def __init__(self, config: IndexConfig, *, text_dim: int, sha256: Mapping[str, str] | None = None) -> None:
        """`text_dim` is that of the null text; `sha256` what the maker of the shards says of them, if anything."""
        self.config, self.text_dim = config, text_dim
        self.columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self.shards: list[ShardInfo] = []
        self.problems = Problems()
        self._sha256 = sha256
        self.latent_channels = 0
        """Of the first sample, and so of all."""
        self.caption_kinds: Counter[str] = Counter()
        """Caption kind -> samples that have it."""
        self.unused: Counter[str] = Counter()
        self.without_source = 0
        self._shard_of: dict[str, str] = {}
        self._split_of: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.columns["key"])

    def lines(self) -> list[str]:
        tokens = self.columns["video_tokens"]
        heldout = self.columns["split"].count("heldout")
        lines = [
            f"samples  {len(self)}, {heldout} of them held out",
            f"tokens   {sum(tokens):,} ({min(tokens)} to {max(tokens)} a sample)",
            f"buckets  {len(set(self.columns['bucket']))}, in {len(set(self.columns['shard']))} shards",
        ]
        if not heldout:
            lines.append("note     no source is held out: raise --heldout-fraction to measure held-out loss")
        if self._sha256 is None:
            lines.append(f"note     no {SUMS_NAME} beside the shards: damage of numbers before now cannot be noticed")
        if self.without_source:
            lines.append(
                f'note     {self.without_source} samples have no "source": each is held out or trained on by itself, '
                "whatever clip it was cut from"
            )
        for kind, count in sorted(self.caption_kinds.items()):
            if count < len(self):
                lines.append(f"note     only {count} of {len(self)} samples have the caption {kind!r}")
        for extension, count in sorted(self.unused.items()):
            lines.append(f"note     {count} members .{extension} are not used in training")
        return lines

    def add(self, part: ShardContents) -> None:
        self.shards.append(part.info)
        self.problems.extend(part.problems, part.num_problems)
        self.unused.update(part.unused)
        if self._sha256 is not None and self._sha256.get(part.info.name) != part.info.sha256:
            said = self._sha256.get(part.info.name, "nothing")
            what = f"wrong checksum: sha256 {part.info.sha256[:12]}..., {SUMS_NAME} says {said[:12]}"
            self.problems.add(part.info.name, "", what)
        for sample in part.samples:
            row, problems = _row(sample, part.info.name, self.config)
            problems += self._conflicts(sample, part.info.name, row)
            for what in problems:
                self.problems.add(part.info.name, sample.key, what)
            if problems:
                continue
            self.caption_kinds.update(sample.text_lengths.keys())
            self.without_source += sample.source is None
            for name, column in self.columns.items():
                column.append(row[name])

    def _conflicts(self, sample: StoredSample, shard: str, row: dict[str, Any]) -> list[str]:
        """How a sample does not go with those before it."""
        problems = []
        self.latent_channels = self.latent_channels or sample.latent_shape[0]
        if sample.latent_shape[0] != self.latent_channels:
            problems.append(
                f"wrong channels: {sample.latent_shape[0]}, but the first sample has {self.latent_channels}"
            )
        if sample.text_dim != self.text_dim:
            problems.append(f"wrong text width: {sample.text_dim}, but the null text has {self.text_dim}")
        other = self._shard_of.setdefault(sample.key, shard)
        if other != shard:
            problems.append(f"duplicate key: it is in {other} too")
        source, split = row["source"], row["split"]
        if self._split_of.setdefault(source, split) != split:
            problems.append(f"source {source!r} is held out with one sample and not with another: give it one split")
        return problems


def _row(sample: StoredSample, shard: str, config: IndexConfig) -> tuple[dict[str, Any], list[str]]:
    """The manifest's row, and what is wrong."""
    problems: list[str] = []
    latent_CTHW = torch.empty(sample.latent_shape, device="meta")
    tokens = 1
    try:
        tokens = video_tokens(latent_CTHW, config.patch_size)
    except ValueError as error:
        problems.append(str(error))
    fps, problem = _fps(sample, config, modality_of(sample.latent_shape))
    problems += problem
    source = sample.source or sample.key
    row = manifest_row(
        {"key": sample.key, "shard": shard, "source": source, "split": _split(sample, source, config), "fps": fps},
        latent_shape=sample.latent_shape,
        tokens=tokens,
        text_tokens=max(sample.text_lengths.values()),
        places=sample.places,
    )
    return row, problems


def _fps(sample: StoredSample, config: IndexConfig, modality: str) -> tuple[float, list[str]]:
    if config.fps is None and sample.fps is None and modality == "video":
        return 0.0, ["no fps in the json: add it, or give one rate for all with --fps"]
    if config.fps is None:
        return sample.fps or 1.0, []
    if sample.fps is not None and modality == "video" and abs(sample.fps - config.fps) > _FPS_TOLERANCE * config.fps:
        return config.fps, [f"fps: the json says {sample.fps:g}, not {config.fps:g}: give --fps own, or the right rate"]
    return config.fps, []


def _split(sample: StoredSample, source: str, config: IndexConfig) -> Split:
    if config.heldout_fraction is not None:
        return split_of(source, config.heldout_fraction)
    match sample.split:
        case "train" | "heldout":
            return sample.split
    return split_of(source, _DEFAULT_HELDOUT)
