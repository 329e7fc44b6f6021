"""What clips will become when they are encoded: windows, sizes and tokens of each, and why others are dropped."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.clips import INDEX_NAME, Clip, ClipSource, clip_shards, count_clips, read_clips, windows_of
from data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, DecodeError
from data.ingest_media import Unusable, check_local
from data.ingest_plan import IngestConfig, MediaFile, Problem, key_of, make_plan
from data.latents import bucket_of
from data.lattice import ClipConfig
from data.listing import Columns, extension_of, read_listing
from data.manifest import BucketSize
from data.report import ClipReport


@dataclass(frozen=True, kw_only=True)
class Fate:
    """One window of a clip as a codec will take it."""

    key: str
    shard: str
    native_height: int
    native_width: int
    frames: int
    height: int
    width: int
    fps: float
    tokens: int
    bucket: str

    def __str__(self) -> str:
        return (
            f"{self.shard}: {self.key}: {self.native_width} x {self.native_height} -> {self.frames} frames of "
            f"{self.width} x {self.height} at {self.fps:g} fps, {self.tokens} tokens, {self.bucket}"
        )


@dataclass(frozen=True, kw_only=True)
class ClipFolder:
    """Clip shards, or media as they are, and what else lies there."""

    folder: Path
    shards: tuple[Path, ...]
    media: tuple[MediaFile, ...]
    """Videos and images outside of tars, as `data.ingest` finds them; looked for only where there are no shards."""
    problems: tuple[Problem, ...]
    """What `data.ingest` drops of them before it opens any: no caption, say."""
    others: Counter[str]
    """Extensions of files that are neither, and how many."""

    @classmethod
    def of(cls, path: Path) -> "ClipFolder":
        """A folder, or a single video or image. ValueError where there is nothing to look at."""
        if not path.exists():
            raise ValueError(f"{path} is not there: give a folder of clip shards, of media or of latent shards")
        if not path.is_dir():
            return cls(folder=path, shards=(), media=(_single(path),), problems=(), others=Counter())
        if (path / INDEX_NAME).is_file() or any(path.glob("*.tar")):
            return cls(folder=path, shards=tuple(clip_shards(path)), media=(), problems=(), others=Counter())
        try:
            plan = make_plan(read_listing(path, Columns()), IngestConfig())
        except ValueError as error:
            raise ValueError(f"no manifest, no shards (*.tar), and {error}") from error
        media = tuple(file for part in plan.parts for file in part.files)
        return cls(folder=path, shards=(), media=media, problems=tuple(plan.problems), others=plan.ignored)

    def __len__(self) -> int:
        """Clips there are, as far as that is known; 0 where it is not."""
        return len(self.media) + len(self.problems) or count_clips(self.folder) or 0

    def fates(self, config: ClipConfig, report: ClipReport) -> Iterator[Fate]:
        """What every clip becomes. What is dropped is in the report."""
        clips = read_clips(self.folder, config, report) if self.shards else self._media_clips(config, report)
        for clip in clips:
            frames, _, height, width = clip.frames_T3HW.shape
            tokens = config.tokens(frames, height, width)
            yield Fate(
                key=clip.key,
                shard=clip.shard,
                native_height=clip.native_height,
                native_width=clip.native_width,
                frames=frames,
                height=height,
                width=width,
                fps=clip.fps,
                tokens=tokens,
                bucket=bucket_of(tokens, clip.modality),
            )

    def _media_clips(self, config: ClipConfig, report: ClipReport) -> Iterator[Clip]:
        for problem in self.problems:
            report.skip(shard=problem.path, key=key_of(problem.path), reason=problem.reason)
        for file in self.media:
            try:
                check_local(Path(file.location))
                media, meta = Path(file.location).read_bytes(), {"captions": {}, "source": file.path}
                source = ClipSource(key=file.key, media=media, extension=file.extension, meta=meta)
                yield from windows_of(source, shard=file.path, config=config, report=report)
            except (Unusable, DecodeError) as error:
                report.skip(shard=file.path, key=file.key, reason=str(error))
            except OSError as error:
                report.skip(shard=file.path, key=file.key, reason=f"unreadable file: {error.strerror}")


def _single(path: Path) -> MediaFile:
    """A video or image by itself: nothing is asked of a caption. ValueError where it is something else."""
    if extension_of(path.name) not in VIDEO_EXTENSIONS + IMAGE_EXTENSIONS:
        raise ValueError(f"{path} is no video or image ({', '.join(VIDEO_EXTENSIONS + IMAGE_EXTENSIONS)})")
    return MediaFile(
        key=key_of(path.name), path=path.name, location=str(path), extension=extension_of(path.name), rows=()
    )


def bucket_sizes(fates: list[Fate]) -> dict[str, BucketSize]:
    """Buckets by name; bytes are not known before encoding."""
    buckets: dict[str, list[Fate]] = {}
    for fate in fates:
        buckets.setdefault(fate.bucket, []).append(fate)
    return {
        name: BucketSize(
            samples=len(some),
            tokens=sum(fate.tokens for fate in some),
            shards=len({fate.shard for fate in some}),
            bytes=0,
        )
        for name, some in sorted(buckets.items())
    }
