"""One data set out of one or more manifests, and how often each of its samples comes."""

import difflib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np

from data.epoch import Stretches
from data.manifest import Chunks, Manifest
from data.rows import Column
from data.split import Split


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How often samples come. A weight of 1 is once an epoch; 0 leaves out."""

    weights: dict[str, float] = field(default_factory=dict)
    """Of buckets by name, or of a modality (`image`, `video`); both count where both are given."""
    image_fraction: float | None = None
    """Share of the tokens that are of images; the modality there is too much of comes less than once an epoch."""
    max_tokens: int | None = None
    """Larger samples are left out."""

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"mix.weights.{name}={weight} must be 0 or more, and finite")
        if self.image_fraction is not None and not 0 <= self.image_fraction <= 1:
            raise ValueError(f"mix.image_fraction={self.image_fraction} must be between 0 and 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"mix.max_tokens={self.max_tokens} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Manifests with their weights. Rows are numbered through: those of the second follow those of the first."""

    manifests: tuple[Manifest, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> "DataSet":
        return cls(manifests=(manifest,), weights=(1.0,))

    def __len__(self) -> int:
        return sum(len(manifest) for manifest in self.manifests)

    def select(self, split: Split) -> "DataSet":
        return replace(self, manifests=tuple(manifest.select(split) for manifest in self.manifests))

    def head(self, samples: int) -> "DataSet":
        """Only the first rows of each manifest."""
        return replace(self, manifests=tuple(manifest.head(samples) for manifest in self.manifests))

    @property
    def where(self) -> str:
        return ", ".join(manifest.folder for manifest in self.manifests)

    @cached_property
    def hash(self) -> str:
        """Names the rows and their weights; of a single manifest that is its own."""
        return self._named([manifest.hash for manifest in self.manifests])

    @cached_property
    def outline(self) -> str:
        """The same of what is known of the rows before they are encoded."""
        return self._named([manifest.outline for manifest in self.manifests])

    def _named(self, names: list[str]) -> str:
        if self.weights == (1.0,):
            return names[0]
        parts = [[name, weight] for name, weight in zip(names, self.weights, strict=True)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.cumsum([0, *(len(manifest.rows) for manifest in self.manifests)])

    @cached_property
    def bucket_names(self) -> tuple[str, ...]:
        return tuple(sorted({name for manifest in self.manifests for name in manifest.buckets()}))

    def place(self, row: int) -> tuple[Manifest, int]:
        """The manifest a row is of, and its number there."""
        source = int(np.searchsorted(self._offsets, row, side="right")) - 1
        return self.manifests[source], row - int(self._offsets[source])

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each row the number of its manifest, and its own number there."""
        sources = np.searchsorted(self._offsets, rows, side="right") - 1
        return sources, rows - self._offsets[sources]

    def column(self, name: str, rows: np.ndarray | Sequence[int]) -> Column:
        rows = np.asarray(rows, dtype=np.int64)
        if len(self.manifests) == 1:
            return self.manifests[0].column(name, rows)
        sources, own = self.places(rows)
        parts = {number: self.manifests[number].column(name, own[sources == number]) for number in np.unique(sources)}
        out = np.empty(len(rows), dtype=next(iter(parts.values())).dtype if parts else object)
        for number, part in parts.items():
            out[sources == number] = part
        return out

    def keys(self, rows: np.ndarray | Sequence[int]) -> list[str]:
        return self.column("key", rows).tolist()

    def stretches(self, mix: MixConfig) -> Stretches:
        """What there is to be ordered; ValueError where the mixture asks for what there is not."""
        parts = [manifest.chunks for manifest in self.manifests]
        source = np.repeat(np.arange(len(parts)), [len(chunks) for chunks in parts])
        bucket = np.concatenate([self._numbers(m)[m.chunks.bucket] for m in self.manifests])
        chunks = Chunks(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})
        weight = np.asarray(self.weights)[source] * self._bucket_weights(mix)[bucket]
        if mix.max_tokens is not None:
            weight[chunks.least_tokens > mix.max_tokens] = 0
        if mix.image_fraction is not None:
            is_image = np.array([name.startswith("image") for name in self.bucket_names])[bucket]
            weight *= _modality_weights(weight * chunks.video_tokens, is_image, mix.image_fraction)
        if float((weight * chunks.count).sum()) < 1:
            raise ValueError(
                f"mix.weights, image_fraction and max_tokens leave less than one sample an epoch of {len(self)} "
                f"in {self.where}: raise them"
            )
        kept = weight > 0
        return Stretches(
            first=(chunks.first + self._offsets[source])[kept],
            count=chunks.count[kept],
            bucket=bucket[kept],
            weight=weight[kept],
        )

    def _numbers(self, manifest: Manifest) -> np.ndarray:
        """Of a manifest's bucket names, the places in ours."""
        places = {name: number for number, name in enumerate(self.bucket_names)}
        return np.array([places.get(name, -1) for name in manifest.bucket_names], dtype=np.int64)

    def _bucket_weights(self, mix: MixConfig) -> np.ndarray:
        known = {*self.bucket_names, "image", "video"}
        for name in mix.weights:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"mix.weights.{name}: there is no such bucket or modality in {self.where}; the nearest is {near}"
                )
        weights = mix.weights
        return np.array([weights.get(n, 1.0) * weights.get(n.partition("-")[0], 1.0) for n in self.bucket_names])


def _modality_weights(tokens: np.ndarray, is_image: np.ndarray, fraction: float) -> np.ndarray:
    """Factors of 1 or less for each chunk that make `fraction` of all tokens those of images."""
    images, videos = float(tokens[is_image].sum()), float(tokens[~is_image].sum())
    if (fraction > 0 and not images) or (fraction < 1 and not videos):
        raise ValueError(
            f"mix.image_fraction={fraction}, but there are {images:.0f} tokens of images and {videos:.0f} of videos: "
            "leave it at null"
        )
    if not images or not videos:
        return np.ones(len(tokens))
    # The modality whose share is too large comes less often.
    wanted = fraction * videos, (1 - fraction) * images
    largest = max(wanted)
    return np.where(is_image, wanted[0] / largest, wanted[1] / largest)


def mix_hash(mix: MixConfig) -> str:
    return hashlib.sha256(json.dumps(asdict(mix), sort_keys=True).encode()).hexdigest()
