"""Clip shards: KEY.mp4 or an image beside KEY.json in WebDataset tars; written here, and streamed as frames."""

import contextlib
import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from webdataset.tariterators import tarfile_samples

from data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, DecodedClip, DecodeError, decoded_clip
from data.lattice import ClipConfig, Window, stream_windows
from data.report import ClipReport
from data.shards import LONGEST_KEY, ShardInfo, ShardWriter, check_key, file_sha256, new_folder, write_bytes
from data.tar_scan import TarDamage, TarScan, is_pickle, split_name, tar_problems

INDEX_NAME = "clips.json"
"""Written beside the shards: bytes, sha256 and count of each, so that a lost or damaged one is noticed."""


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """One clip to be stored. `meta` needs `captions` (kind -> text) and `source`, the id that splits go by."""

    key: str
    media: bytes
    extension: str
    meta: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One window of a clip, or an image: what a codec takes. `frames_T3HW` uint8, T = 1 + 4k."""

    key: str
    frames_T3HW: Tensor
    captions: dict[str, str]
    source: str
    fps: float
    """Frames a second after resampling; says nothing of an image."""
    start_s: float
    """Where the window starts in its source."""
    native_height: int
    native_width: int
    shard: str
    clip_key: str
    """Of the clip that it is a window of."""
    window: int
    """Which of its windows it is."""

    @property
    def modality(self) -> str:
        return "image" if self.frames_T3HW.shape[0] == 1 else "video"


def write_clip_shards(
    clips: Iterable[ClipSource], folder: str | Path, *, clips_per_shard: int = 256, replace: bool = False
) -> list[ShardInfo]:
    """Write clip shards and their index as a new folder; all of it or nothing.

    Raises ValueError for keys, extensions or captions that a reader would refuse, and where there is no clip.
    """
    with new_folder(Path(folder), replace=replace) as scratch:
        writer = ClipShardWriter(scratch, clips_per_shard=clips_per_shard)
        for clip in clips:
            writer.write(clip)
        shards = writer.close()
        if not shards:
            raise ValueError(f"no clips to write to {folder}: give at least one")
        write_index(scratch, shards)
    return shards


class ClipShardWriter:
    """Writes clips into shards PREFIX-NNNNNN.tar of a folder; a new shard begins when one is full."""

    def __init__(self, folder: Path, *, clips_per_shard: int, prefix: str = "clips") -> None:
        self._folder, self._clips_per_shard, self._prefix = folder, clips_per_shard, prefix
        self._shards: list[ShardInfo] = []
        self._open: ShardWriter | None = None
        self._seen: set[str] = set()

    def write(self, clip: ClipSource) -> None:
        """Append one clip. Raises ValueError for a key, extension or captions that a reader would refuse."""
        _check_source(clip, self._seen)
        if self._open is None:
            self._open = ShardWriter(self._folder, f"{self._prefix}-{len(self._shards):06d}.tar")
        meta = clip.meta | {"crc32": crc32(clip.media)}
        meta |= {"meta_crc32": _meta_crc32(meta)}
        self._open.write(clip.key, {clip.extension: clip.media, "json": json.dumps(meta).encode()})
        if self._open.count >= self._clips_per_shard:
            self.close()

    def close(self) -> list[ShardInfo]:
        """Finish the shard that is open; all shards so far."""
        if self._open is not None:
            self._shards.append(self._open.close())
            self._open = None
        return self._shards


def write_index(folder: Path, shards: list[ShardInfo]) -> None:
    index = {"shards": [asdict(shard) for shard in shards]}
    write_bytes(folder / INDEX_NAME, json.dumps(index, indent=1).encode())


def _check_source(clip: ClipSource, seen: set[str]) -> None:
    check_key(clip.key)
    if clip.key in seen:
        raise ValueError(f"clip key {clip.key!r} is used twice: keys must be unique over all shards")
    if clip.extension not in VIDEO_EXTENSIONS + IMAGE_EXTENSIONS:
        raise ValueError(f"clip {clip.key}: .{clip.extension} is none of {VIDEO_EXTENSIONS + IMAGE_EXTENSIONS}")
    problem = _meta_problem(clip.meta)
    if problem:
        raise ValueError(f"clip {clip.key}: {problem}")
    seen.add(clip.key)


def _meta_crc32(meta: dict[str, Any]) -> int:
    """Of KEY.json without this number itself."""
    return crc32(json.dumps({name: value for name, value in meta.items() if name != "meta_crc32"}).encode())


def _meta_problem(meta: Any) -> str | None:
    """What KEY.json lacks, or None."""
    if not isinstance(meta, dict):
        return "bad json: not an object"
    captions = meta.get("captions")
    if not isinstance(captions, dict) or not captions:
        return 'no captions: json needs {"captions": {KIND: TEXT}}'
    empty = [kind for kind, text in captions.items() if not isinstance(text, str) or not text.strip()]
    if empty:
        return f"empty caption: {', '.join(empty)}"
    if not isinstance(meta.get("source"), str) or not meta["source"]:
        return 'no source: json needs {"source": ID}, the id that held-out splits go by'
    return None


@dataclass(frozen=True, kw_only=True)
class MediaPlace:
    """Where the video or image of a clip lies in its shard."""

    extension: str
    offset: int
    size: int
    sha256: str


def media_places(shard: Path) -> dict[str, MediaPlace]:
    """By key, those of all clips of a shard up to where it is damaged, which `read_clips` tells."""
    places: dict[str, MediaPlace] = {}
    with open(shard, "rb") as file, contextlib.suppress(TarDamage):
        scan = TarScan(file, shard.stat().st_size)
        for entry in scan.entries():
            key, extension = split_name(entry.name)
            if entry.kind == "file" and extension in VIDEO_EXTENSIONS + IMAGE_EXTENSIONS and key not in places:
                sha256 = hashlib.sha256(scan.payload(entry)).hexdigest()
                places[key] = MediaPlace(extension=extension, offset=entry.offset, size=entry.size, sha256=sha256)
    return places


def clip_shards(folder: str | Path) -> list[Path]:
    """The clip shards of a folder in order; ValueError where there is none, or one of the index is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"clips={folder} is not a folder: give the folder of clip shards (*.tar), or make it first")
    index = _read_index(folder)
    if index is not None:
        missing = [name for name in index if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"clips={folder} lacks {missing[0]} ({len(missing)} of {len(index)} shards in {INDEX_NAME}): "
                "restore it, or make the clips again"
            )
        if unknown := sorted({path.name for path in folder.glob("*.tar")} - index.keys()):
            raise ValueError(
                f"clips={folder}: {unknown[0]} ({len(unknown)} shards) is not in {INDEX_NAME} and would never be read: "
                "move it to a folder of its own, or make the clips again with it"
            )
        return [folder / name for name in index]
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise ValueError(f"clips={folder} holds no clip shards (*.tar): is it the right folder?")
    return shards


def count_clips(folder: str | Path) -> int | None:
    """Clips in a folder as its index says; None without one."""
    index = _read_index(Path(folder))
    return None if index is None else sum(shard.count for shard in index.values())


def clip_shards_identity(folder: str | Path) -> str:
    """Hash that names the bytes of all clip shards: from the index, else from the files."""
    index = _read_index(Path(folder)) or {}
    digest = hashlib.sha256()
    for path in clip_shards(folder):
        content = index[path.name].sha256 if path.name in index else file_sha256(path)
        digest.update(f"{path.name} {path.stat().st_size} {content}\n".encode())
    return digest.hexdigest()


def _read_index(folder: Path) -> dict[str, ShardInfo] | None:
    path = folder / INDEX_NAME
    if not path.is_file():
        return None
    try:
        shards = [ShardInfo(**shard) for shard in json.loads(path.read_text())["shards"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it to read the shards without it") from error
    return {shard.name: shard for shard in shards}


def read_clips(
    folder: str | Path,
    config: ClipConfig,
    report: ClipReport | None = None,
    *,
    shards: Sequence[Path] | None = None,
    seen: set[str] | None = None,
) -> Iterator[Clip]:
    """Stream every clip of a folder, or of some of its shards, as windows on the lattice, in shard order.

    Windows come while their clip is decoded, so that no more than one of them is held, whatever the clip's length.
    A clip that cannot be used is skipped, and `report` says which and why; so is what a damaged shard loses. Of a
    clip with damage in its middle the windows before it are kept. `seen` has the keys of clips read before, and takes
    those of the clips read now.
    """
    report = report if report is not None else ClipReport()
    index = _read_index(Path(folder))
    seen = seen if seen is not None else set()
    for path in shards if shards is not None else clip_shards(folder):
        told = len(report.skipped)
        damage = tar_problems(path)
        for reason in damage:
            report.skip(shard=path.name, key="", reason=reason)
        count = 0
        for sample in _samples(path, report, damaged=bool(damage)):
            count += 1
            try:
                yield from _windows(sample, path.name, config, report, seen)
            except DecodeError as error:
                report.skip(shard=path.name, key=sample["__key__"], reason=str(error))
        is_told = damage or any(item.reason.startswith("wrong checksum") for item in report.skipped[told:])
        if index is not None and not is_told:
            _compare(path, count, index[path.name], report)


def _compare(path: Path, count: int, written: ShardInfo, report: ClipReport) -> None:
    """Tell of a shard that is not the one that was written."""
    if count != written.count:
        reason = f"wrong count: {count} clips, but {written.count} in {INDEX_NAME}"
        report.skip(shard=path.name, key="", reason=reason)
    elif file_sha256(path) != written.sha256:
        reason = f"wrong checksum: the shard is not the one that {INDEX_NAME} names, though its clips can be read"
        report.skip(shard=path.name, key="", reason=reason)


def _samples(path: Path, report: ClipReport, *, damaged: bool) -> Iterator[dict[str, Any]]:
    """Raw samples of one shard; every error that ends it early or drops a member is in the report."""

    def on_error(error: Exception) -> bool:
        if damaged and isinstance(error, tarfile.ReadError):
            return False  # already reported, with what is cut off
        report.skip(shard=path.name, key="", reason=f"unreadable member: {error.args[0] if error.args else error!r}")
        return isinstance(error, ValueError)  # a second member of the same name: the first one stands

    return tarfile_samples(iter([{"url": str(path.resolve())}]), handler=on_error)


def _windows(
    sample: dict[str, Any], shard: str, config: ClipConfig, report: ClipReport, seen: set[str]
) -> Iterator[Clip]:
    """All windows of one clip; raises DecodeError where the clip, or the rest of it, is no good."""
    key = sample["__key__"]
    try:
        check_key(key)
    except ValueError as error:
        raise DecodeError(f"bad key: {error}") from error
    if key in seen:
        raise DecodeError("duplicate key: a clip of this name was read before")
    seen.add(key)
    extension, meta = _media_and_meta(sample)
    clip = ClipSource(key=key, media=sample[extension], extension=extension, meta=meta)
    yield from windows_of(clip, shard=shard, config=config, report=report)


def windows_of(source: ClipSource, *, shard: str, config: ClipConfig, report: ClipReport) -> Iterator[Clip]:
    """All windows of one clip; raises DecodeError where the clip, or the rest of it, is no good."""
    number, used = 0, 0
    try:
        for decoded, window in _streamed(source.media, config, extension=source.extension):
            clip = _clip(source, decoded, window, number=number, shard=shard)
            report.source_clips += number == 0
            report.windows += 1
            report.images += clip.modality == "image"
            report.frames += len(clip.frames_T3HW)
            number, used = number + 1, used + len(clip.frames_T3HW)
            yield clip
            del clip
        report.frames_cropped += decoded.count - used
    except DecodeError as error:
        raise DecodeError(f"{error}; the {number} windows before it are kept" if number else str(error)) from error


def _streamed(media: bytes, config: ClipConfig, *, extension: str) -> Iterator[tuple[DecodedClip, Window[Tensor]]]:
    """The windows of a clip, at least one.

    The first is the longest. Where it breaks `max_tokens`, since time stamps foretold a shorter one, the clip is
    decoded again for its true length.
    """
    longest: int | None = None
    while True:
        with decoded_clip(media, config, extension=extension, longest=longest) as decoded:
            gave = False
            for window in stream_windows(decoded, config, is_image=extension in IMAGE_EXTENSIONS):
                tokens = config.tokens(len(window.frames), *window.frames[0].shape[1:])
                if config.max_tokens is not None and tokens > config.max_tokens:
                    assert longest is None, (tokens, config)
                    longest = len(window.frames)
                    break
                gave = True
                yield decoded, window
            else:
                if not gave:
                    raise DecodeError(_too_short(decoded, config))
                return


def _too_short(decoded: DecodedClip, config: ClipConfig) -> str:
    if not decoded.count:
        return "no frames"
    return f"too short: {decoded.count} frames at {decoded.fps:g} fps, fewer than min_frames={config.min_frames}"


def _media_and_meta(sample: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The extension of the one media member, and the parsed json."""
    pickles = [name for name in sample if is_pickle(name)]
    if pickles:
        raise DecodeError(f"pickle member: reading .{pickles[0]} may run code in it")
    media = [name for name in sample if name in VIDEO_EXTENSIONS + IMAGE_EXTENSIONS]
    if len(media) != 1:
        members = ", ".join(name for name in sample if not name.startswith("__"))
        raise DecodeError(f"{'no' if not media else 'more than one'} video or image: members are {members}")
    if "json" not in sample:
        raise DecodeError("no json: captions and source are missing")
    try:
        meta = json.loads(sample["json"])
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"bad json: {error}") from error
    problem = _meta_problem(meta)
    if problem:
        raise DecodeError(problem)
    if "meta_crc32" in meta and meta["meta_crc32"] != _meta_crc32(meta):
        raise DecodeError("wrong checksum: the json is not the one that was written")
    if "crc32" in meta and meta["crc32"] != crc32(sample[media[0]]):
        raise DecodeError("wrong checksum: the bytes are not those that were written")
    return media[0], meta


def _window_key(key: str, number: int) -> str:
    name = f"{key}_w{number:02d}"
    if len(name) > LONGEST_KEY:
        raise DecodeError(
            f"long key: its window {name!r} would have {len(name)} letters, more than the {LONGEST_KEY} that a shard "
            f"holds: shorten the clip's key by {len(name) - LONGEST_KEY}"
        )
    return name


def _clip(source: ClipSource, decoded: DecodedClip, window: Window[Tensor], *, number: int, shard: str) -> Clip:
    meta = source.meta
    frames_T3HW = torch.stack(window.frames)
    window.frames.clear()  # else the pictures would be held beside their copy while the clip is encoded
    return Clip(
        key=source.key if window.is_only else _window_key(source.key, number),
        frames_T3HW=frames_T3HW,
        captions=meta["captions"],
        source=meta["source"],
        fps=decoded.fps,
        start_s=float(meta.get("start_s") or 0.0) + window.first / decoded.fps,
        native_height=decoded.native_height,
        native_width=decoded.native_width,
        shard=shard,
        clip_key=source.key,
        window=number,
    )
