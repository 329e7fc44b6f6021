"""The finished parts of an encoding, so that a stopped one goes on where it was and ends with the same bytes.

A part is some clip shards in a row. When all latent shards of a part are closed, its rows are written beside them and
then counted as done by replacing one small file; whatever else lies in the folder is half-written and goes.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.latents import LatentWriter
from data.report import ClipReport, Skipped
from data.shards import write_bytes

log = logging.getLogger(__name__)

FOLDER_NAME = "parts"
_DONE_NAME = "done.json"


class EncodedParts:
    """Which parts of `clip_shards` are done in the scratch folder `scratch`, made from `inputs`."""

    def __init__(self, scratch: Path, clip_shards: list[Path], *, inputs: str, shards_per_part: int) -> None:
        self.folder, self.inputs = scratch / FOLDER_NAME, inputs
        self.parts = [clip_shards[i : i + shards_per_part] for i in range(0, len(clip_shards), shards_per_part)]
        self.seen: set[str] = set()
        """Keys of all clips read so far."""
        self.report = ClipReport()
        self.done = 0
        self._seen_before: set[str] = set()
        self._rows_before = self._shards_before = 0

    def restore(self, writer: LatentWriter) -> None:
        """Take up what is done, into `writer` too; remove what is half-written."""
        if stands(self.folder.parent, self.inputs):
            done = _read_done(self.folder.parent)
            self.done = done["parts"]
            skipped = [Skipped(**item) for item in done["report"].pop("skipped")]
            self.report = ClipReport(**done["report"], skipped=skipped)
        self.folder.mkdir(exist_ok=True)
        for number in range(self.done):
            part = json.loads((self.folder / _name(number)).read_text())
            writer.restore(part["written"])
            self.seen |= set(part["seen"])
        self._mark(writer)
        whole = {shard.name for shard in writer.shards} | {f"{FOLDER_NAME}/{_name(n)}" for n in range(self.done)}
        _remove_others(self.folder.parent, whole | {f"{FOLDER_NAME}/{_DONE_NAME}"})

    def left(self) -> Iterator[list[Path]]:
        """The clip shards of each part that is not done, in order."""
        yield from self.parts[self.done :]

    def commit(self, writer: LatentWriter) -> None:
        """Close the shards of the part just written and count it as done."""
        writer.flush()
        part = {
            "written": writer.since(row=self._rows_before, shard=self._shards_before),
            "seen": sorted(self.seen - self._seen_before),
        }
        write_bytes(self.folder / _name(self.done), json.dumps(part).encode())
        self.done += 1
        done = {"inputs": self.inputs, "parts": self.done, "report": asdict(self.report)}
        temporary = self.folder / f"{_DONE_NAME}.new"
        write_bytes(temporary, json.dumps(done).encode())
        os.replace(temporary, self.folder / _DONE_NAME)
        self._mark(writer)

    def remove(self) -> None:
        """Leave the latent shards alone in their folder."""
        shutil.rmtree(self.folder)

    def _mark(self, writer: LatentWriter) -> None:
        self._rows_before, self._shards_before = len(writer.columns["key"]), len(writer.shards)
        self._seen_before = set(self.seen)


def stands(scratch: Path, inputs: str) -> bool:
    """Whether a scratch folder holds finished parts made from `inputs`."""
    if not (scratch / FOLDER_NAME / _DONE_NAME).is_file():
        return False
    found = _read_done(scratch)
    if found.get("inputs") != inputs:
        log.info("%s was begun from other clips, another codec or other settings: it is removed", scratch)
        return False
    return True


def _read_done(scratch: Path) -> dict[str, Any]:
    path = scratch / FOLDER_NAME / _DONE_NAME
    try:
        done: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): delete {scratch} to encode from the start") from error
    return done


def _name(part: int) -> str:
    return f"{part:06d}.json"


def _remove_others(scratch: Path, whole: set[str]) -> None:
    for path in sorted(scratch.rglob("*")):
        if path.is_file() and str(path.relative_to(scratch)) not in whole:
            path.unlink()
