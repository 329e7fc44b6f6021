"""One media file to clips: opened, fetched first if need be, and then cut, or copied whole."""

import errno
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import Any

import av
import fsspec
from PIL import Image, ImageOps

from data.clips import ClipSource
from data.decode import IMAGE_EXTENSIONS, DecodeError, checked, is_sideways, opened, video_stream
from data.ingest_plan import IngestConfig, MediaFile, Problem
from data.listing import Row, is_url
from data.recode import RecodeConfig, Recoded, SmallFrame, Span, cut_pieces, small_frames, source_rate
from data.scenes import SceneConfig, split_shots

SHORT_PIECES = "short pieces"
"""A kind of problem that is none where others of the same video were kept."""
_LARGEST_COPY = 1 << 30
"""A file that is kept whole is held in memory."""
_EVERY_SIZE = 1 << 20
_IMAGE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
"""How an image of a format is saved once it was scaled down."""


class Unusable(ValueError):
    """Why a file gives no clip; the message is a reason for the report."""


def clips_of(file: MediaFile, config: IngestConfig, *, problems: list[Problem], scratch: Path) -> Iterator[ClipSource]:
    """All clips of a file; what cannot be used is added to `problems`. A URL is fetched to `scratch` meanwhile."""
    made = 0
    try:
        with _at_hand(file, scratch) as path:
            for clip in _clips(file, path, config, problems):
                made += 1
                yield clip
    except (Unusable, DecodeError, OSError, av.FFmpegError, MemoryError) as error:
        if _is_disk_full(error):
            raise
        kept = f"; clips before it that are kept: {made}" if made else ""
        problems.append(Problem(path=file.path, reason=f"{_reason(error)}{kept}"))


def _is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _reason(error: Exception) -> str:
    if isinstance(error, Unusable | DecodeError):
        return str(error)
    kind = "cannot be encoded" if isinstance(error, av.FFmpegError) else "unreadable file"
    return f"{kind}: {error.strerror if isinstance(error, OSError | av.FFmpegError) else type(error).__name__}"


def _clips(file: MediaFile, path: Path, config: IngestConfig, problems: list[Problem]) -> Iterator[ClipSource]:
    if file.extension in IMAGE_EXTENSIONS:
        yield from _image_clips(file, path, config)
        return
    copied = [row for row in file.rows if config.whole and row.is_whole and not _is_too_large(file, path, config)]
    rest = [row for row in file.rows if row not in copied]
    if rest:
        yield from _cut_video(file, path, rest, config=config, problems=problems)
    for row in copied:
        yield _copied_video(file, path, row, config)


@contextmanager
def _at_hand(file: MediaFile, scratch: Path) -> Iterator[Path]:
    """The file on a local disk; Unusable where it is missing, unreadable or cannot be fetched."""
    if not is_url(file.location):
        path = Path(file.location)
        check_local(path)
        yield path
        return
    path = scratch / f"fetched.{file.extension}"
    try:
        _fetch(file.location, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def check_local(path: Path) -> None:
    """Unusable where the file is missing (a link to nothing, too), empty, or cannot be read."""
    try:
        state = path.stat()
        if not S_ISREG(state.st_mode):
            raise Unusable("unreadable file: it is no plain file")
        if not state.st_size:
            raise Unusable("empty file")
        with open(path, "rb"):
            pass
    except FileNotFoundError as error:
        raise Unusable("missing file") from error
    except OSError as error:
        raise Unusable(f"unreadable file: {error.strerror}") from error


def _fetch(url: str, path: Path) -> None:
    try:
        with fsspec.open(url, "rb") as remote, open(path, "wb") as local:
            shutil.copyfileobj(remote, local, 1 << 20)
    except FileNotFoundError as error:
        raise Unusable("missing file") from error
    except Exception as error:  # each file system has errors of its own
        if _is_disk_full(error):
            raise
        raise Unusable(f"unreadable file: cannot be fetched ({type(error).__name__} {error})") from error


def _image_clips(file: MediaFile, path: Path, config: IngestConfig) -> Iterator[ClipSource]:
    """The image once a row: its bytes, or scaled down."""
    with opened(path, file.extension) as container:
        frames = list(islice(checked(container.decode(video_stream(container))), 1))
    if not frames:
        raise Unusable("zero frames")
    height, width = frames[0].height, frames[0].width
    if is_sideways(frames[0]):
        height, width = width, height
    data, size = path.read_bytes(), (height, width)
    if config.short_side is not None and config.short_side < min(size):
        data, size = _smaller_image(data, config.short_side)
    for number, row in enumerate(file.rows):
        facts: dict[str, Any] = {"fps": None, "frames": 1, "height": size[0], "width": size[1]}
        facts |= {"source_height": height, "source_width": width, "start_s": 0.0, "end_s": 0.0}
        yield ClipSource(key=_key(file, number), media=data, extension=file.extension, meta=_meta(row) | facts)


def _smaller_image(data: bytes, short_side: int) -> tuple[bytes, tuple[int, int]]:
    """Bytes of the same format, upright, and (height, width)."""
    try:
        image = Image.open(BytesIO(data), formats=tuple(_IMAGE_OPTIONS))
        kind = image.format
        upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unusable(f"cannot be decoded: {error}") from error
    scale = short_side / min(upright.size)
    smaller = upright.resize(
        (round(upright.width * scale), round(upright.height * scale)), Image.Resampling.LANCZOS, reducing_gap=3.0
    )
    target = BytesIO()
    options = _IMAGE_OPTIONS[kind or "PNG"]
    smaller.save(target, kind, **options)
    return target.getvalue(), (smaller.height, smaller.width)


def _is_too_large(file: MediaFile, path: Path, config: IngestConfig) -> bool:
    """Whether a video is above the size asked for, so that it cannot be copied."""
    if config.short_side is None:
        return False
    with opened(path, file.extension) as container:
        stream = video_stream(container)
        for frame in container.decode(stream):
            return min(frame.height, frame.width * float(stream.sample_aspect_ratio or 1)) > config.short_side
    raise Unusable("zero frames")


def _copied_video(file: MediaFile, path: Path, row: Row, config: IngestConfig) -> ClipSource:
    if path.stat().st_size > _LARGEST_COPY:
        raise Unusable(f"too large: {path.stat().st_size >> 20} MiB in one piece; cut it, or leave out --whole")
    first = last = None
    frames = 0
    for small in _frames(file, path, RecodeConfig(short_side=16)):
        first, last, frames = first or small, small, frames + 1
    if first is None or last is None:
        raise Unusable("zero frames")
    if last.end_s < config.min_s:
        raise Unusable(f"too short: {last.end_s:.3f} s in {frames} frames, below --min-s {config.min_s:g}")
    span = last.start_s - first.start_s if frames > 1 else last.end_s
    size = {"height": first.source_height, "width": first.source_width}
    clip = Recoded(media=path.read_bytes(), fps=round(max(frames - 1, 1) / span, 4), frames=frames, **size)
    return _clip(file, row, clip, source=size, start_s=0.0, end_s=round(last.end_s, 4), extension=file.extension)


def _frames(file: MediaFile, path: Path, config: RecodeConfig) -> Iterator[SmallFrame]:
    """Every frame of a file. One thread: files are worked side by side, and damage shows the same way everywhere."""
    with opened(path, file.extension) as container:
        stream = video_stream(container)
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        yield from small_frames(stream, checked(container.decode(stream)), config, SceneConfig())


def _cut_video(
    file: MediaFile, path: Path, rows: list[Row], *, config: IngestConfig, problems: list[Problem]
) -> Iterator[ClipSource]:
    recode = RecodeConfig(short_side=config.short_side or _EVERY_SIZE, crf=config.crf)
    with opened(path, file.extension) as container:
        rate = source_rate(video_stream(container))
    frames = _counted(_frames(file, path, recode))
    scenes = SceneConfig()
    shots = ((0, small) for small in frames) if config.whole else split_shots(frames, scenes)
    short: Counter[int] = Counter()
    short_s = 0.0
    kept: Counter[int] = Counter()
    pieces = cut_pieces(
        shots,
        [Span(start_s=row.start_s, end_s=row.end_s) for row in rows],
        config=recode,
        rate=rate,
        min_s=config.min_s,
        max_s=math.inf if config.whole else config.max_s,
    )
    for piece in pieces:
        if piece.clip is None:
            short[piece.span] += 1
            short_s += piece.end_s - piece.start_s
            continue
        kept[piece.span] += 1
        row = rows[piece.span]
        source = {"height": piece.source_height, "width": piece.source_width}
        clip = _clip(file, row, piece.clip, source=source, extension="mp4", start_s=piece.start_s, end_s=piece.end_s)
        yield clip if config.whole else replace(clip, key=f"{clip.key}--{piece.number:04d}")
    problems += _lost(file, rows, kept=kept, short=short, short_s=short_s, config=config)


def _counted(frames: Iterator[SmallFrame]) -> Iterator[SmallFrame]:
    """The same frames; Unusable where there is none."""
    first = next(frames, None)
    if first is None:
        raise Unusable("zero frames")
    yield first
    yield from frames


def _lost(
    file: MediaFile, rows: list[Row], *, kept: Counter[int], short: Counter[int], short_s: float, config: IngestConfig
) -> list[Problem]:
    """What of a video that could be read gave no clip."""
    lost = []
    if short:
        kind = SHORT_PIECES if kept else "too short"
        pieces = f"{short.total()} of {short.total() + kept.total()} pieces, {short_s:.2f} s in all"
        lost.append(Problem(path=file.path, reason=f"{kind}: {pieces}, below --min-s {config.min_s:g}"))
    for index, row in enumerate(rows):
        if not kept[index] and not short[index]:
            where = "every frame is blank" if row.is_whole else f"no picture from {row.start_s:g} to {row.end_s:g} s"
            kind = "blank video" if row.is_whole else "empty time range"
            lost.append(Problem(path=file.path, row=row.number, reason=f"{kind}: {where}"))
    return lost


def _clip(
    file: MediaFile, row: Row, clip: Recoded, *, source: Mapping[str, int], extension: str, **times: float
) -> ClipSource:
    facts = {"fps": clip.fps, "frames": clip.frames, "height": clip.height, "width": clip.width}
    facts |= {f"source_{side}": pixels for side, pixels in source.items()} | times
    return ClipSource(
        key=_key(file, file.rows.index(row)), media=clip.media, extension=extension, meta=_meta(row) | facts
    )


def _key(file: MediaFile, number: int) -> str:
    return f"{file.key}--{number:04d}" if len(file.rows) > 1 else file.key


def _meta(row: Row) -> dict[str, object]:
    return {"captions": row.captions, "source": row.source}
