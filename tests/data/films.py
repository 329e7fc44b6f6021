"""Small films of coloured scenes with known cuts, encoded by PyAV, and collections of them on disk."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np

from data.ingest_part import PartRecord
from data.ingest_plan import IngestConfig, Part

FPS = 24
COLOURS = [(200, 60, 60), (60, 190, 80), (70, 80, 210), (200, 190, 60), (180, 70, 190), (70, 190, 190)]


def film(
    scenes: Sequence[int] = (30, 30), *, first: int = 0, height: int = 64, width: int = 96, container: str = "mp4"
) -> bytes:
    """Scenes of so many frames, each in the next colour; a bar moves along, so that no two frames are equal."""
    target = BytesIO()
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream("libx264", rate=FPS, options={"crf": "12", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        number = 0
        for scene, frames in enumerate(scenes):
            for at in range(frames):
                ramp = np.linspace(1.0, 0.6, width)[None, :, None]
                picture = np.array(COLOURS[(first + scene) % len(COLOURS)]) * np.broadcast_to(ramp, (height, width, 1))
                picture[:, at % width] = 240
                frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8))
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                output.mux(stream.encode(frame))
                number += 1
        output.mux(stream.encode(None))
    return target.getvalue()


def put(folder: Path, name: str, media: bytes, caption: str | dict[str, Any] | list[Any] | None = None) -> None:
    """A media file, with KEY.txt for text or KEY.json for anything else."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(media)
    if isinstance(caption, str):
        path.with_suffix(".txt").write_text(caption)
    elif caption is not None:
        path.with_suffix(".json").write_text(json.dumps(caption))


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make_and_die(part: Part, config: IngestConfig, folder: Path, *, crashed: dict[int, str], strict: bool) -> Iterator:
    """The making of a part that is killed on each file named deadly, until it is told to leave that out."""
    for index, file in enumerate(part.files):
        yield index, 0
        if "deadly" in file.path and index not in crashed:
            os.kill(os.getpid(), signal.SIGKILL)
    yield PartRecord(hash=part.hash, files=len(part.files), files_used=len(crashed))


def die(*_: object, **__: object) -> Iterator:
    """The making of a part that is killed before it begins."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield
