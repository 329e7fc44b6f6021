"""Checkpoints of logical tensors: any layout writes them, any layout reads them.

A checkpoint is a folder `step_00001234/` with `pieces-*.safetensors` (one file a writing rank), `index.json`
(logical tensor -> shape, dtype and the rectangles it is made of; sha256 of every file), `state.json`,
`config.yaml` and `COMMIT`, which is written last and holds the sha256 of the three text files. A folder
without a matching COMMIT does not exist for the reader. No pickle is read or written.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from parallel.fragments import Piece

FORMAT = 1
COMMIT, INDEX, STATE, CONFIG = "COMMIT", "index.json", "state.json", "config.yaml"
log = logging.getLogger(__name__)

Gather = Callable[[Any], list[Any]]
"""All ranks hand in an object; each gets the list of all, in rank order."""


class CorruptCheckpoint(ValueError):
    """A checkpoint that must not be loaded; the message names the file and what is wrong with it."""


def step_folder(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def write_checkpoint(
    root: Path,
    pieces: Iterable[Piece],
    *,
    state: dict[str, Any],
    config_yaml: str,
    rank: int,
    gather: Gather,
) -> Path:
    """Write this rank's pieces and commit the whole; collective over all ranks.

    A failure on one rank (a full disk, say) leaves nothing behind and raises the same OSError on all of them.
    """
    final = step_folder(root, state["step"])
    scratch = final.with_name(final.name + ".tmp")
    failure = _attempt(lambda: _fresh_folder(scratch)) if rank == 0 else None
    _raise_together(failure, gather, scratch)

    written: dict[str, Any] = {}
    failure = _attempt(lambda: written.update(_write_pieces(scratch, rank, pieces)))
    reports = _raise_together(failure, gather, scratch, payload=written)

    texts = {STATE: json.dumps(state, indent=1, sort_keys=True), CONFIG: config_yaml}
    failure = _attempt(lambda: _commit(scratch, final, reports, texts)) if rank == 0 else None
    _raise_together(failure, gather, scratch)
    return final


def _attempt(action: Callable[[], None]) -> str | None:
    """Run `action`; an operating-system failure comes back as text, to be raised on all ranks at once."""
    try:
        action()
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        return "the disk is full" if full else str(error)
    return None


def _raise_together(failure: str | None, gather: Gather, scratch: Path, payload: Any = None) -> list[Any]:
    reports = gather((failure, payload))
    failures = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(reports) if text]
    if failures:
        shutil.rmtree(scratch, ignore_errors=True)
        raise OSError(
            f"checkpoint {scratch.with_suffix('')} was not written ({failures[0]}); earlier checkpoints are intact, "
            "so free space or repair the disk and start the same command again"
        )
    return [payload for _, payload in reports]


def _fresh_folder(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _write_pieces(folder: Path, rank: int, pieces: Iterable[Piece]) -> dict[str, Any]:
    """Write one safetensors file; return its name, hash and what lies in it (nothing where there are no pieces)."""
    tensors: dict[str, Tensor] = {}
    entries = []
    for number, piece in enumerate(pieces):
        key = f"{number:05d}"
        tensors[key] = piece.tensor.detach().cpu().contiguous()
        entries.append(
            {
                "tensor": f"{piece.kind}/{piece.name}",
                "key": key,
                "global_shape": list(piece.global_shape),
                "offset": list(piece.offset),
                "shape": list(piece.tensor.shape),
                "dtype": str(piece.tensor.dtype).removeprefix("torch."),
            }
        )
    if not entries:
        return {}
    path = folder / f"pieces-{rank:05d}.safetensors"
    save_file(tensors, path)
    _sync(path)
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path), "entries": entries}


def _commit(scratch: Path, final: Path, reports: list[dict[str, Any]], texts: dict[str, str]) -> None:
    files: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for report in filter(None, reports):
        files[report["file"]] = {"bytes": report["bytes"], "sha256": report["sha256"]}
        for entry in report["entries"]:
            logical = tensors.setdefault(
                entry["tensor"], {"shape": entry["global_shape"], "dtype": entry["dtype"], "pieces": []}
            )
            piece = {name: entry[name] for name in ("key", "offset", "shape")}
            logical["pieces"].append({"file": report["file"], **piece})
    texts = {**texts, INDEX: json.dumps({"format": FORMAT, "tensors": tensors, "files": files}, sort_keys=True)}
    for name, text in texts.items():
        _write_text(scratch / name, text)
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    _write_text(scratch / COMMIT, json.dumps(hashes, sort_keys=True))
    if final.exists():
        shutil.rmtree(final)
    scratch.rename(final)
    _sync(final.parent)


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CheckpointReader:
    """One committed checkpoint; every file is checked against its hash before anything of it is parsed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        texts = self._committed_texts()
        index = json.loads(texts[INDEX])
        if index["format"] != FORMAT:
            raise CorruptCheckpoint(f"{folder}: format {index['format']} is not {FORMAT}, the one this version reads")
        self.state: dict[str, Any] = json.loads(texts[STATE])
        self.config_yaml = texts[CONFIG]
        self._tensors: dict[str, Any] = index["tensors"]
        self._files: dict[str, Any] = index["files"]
        self._checked: set[str] = set()

    def _committed_texts(self) -> dict[str, str]:
        commit = self.folder / COMMIT
        if not commit.is_file():
            raise CorruptCheckpoint(f"{self.folder}: no {COMMIT} file, so the save never finished")
        try:
            hashes = json.loads(commit.read_bytes())
            texts = {name: (self.folder / name).read_bytes() for name in (INDEX, STATE, CONFIG)}
            wrong = [name for name in texts if hashlib.sha256(texts[name]).hexdigest() != hashes[name]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptCheckpoint(f"{self.folder}: cannot be read ({error})") from error
        if wrong:
            raise CorruptCheckpoint(f"{self.folder / wrong[0]}: sha256 differs from the one in {COMMIT}")
        return {name: data.decode() for name, data in texts.items()}

    def verify(self) -> None:
        """Check every file's size and hash; raise CorruptCheckpoint naming the first bad one."""
        for name in self._files:
            self._checked_path(name)

    def _checked_path(self, name: str) -> Path:
        path = self.folder / name
        if name in self._checked:
            return path
        if Path(name).name != name or not path.is_file():
            raise CorruptCheckpoint(f"{path}: missing")
        expected = self._files[name]
        if path.stat().st_size != expected["bytes"]:
            raise CorruptCheckpoint(f"{path}: {path.stat().st_size} bytes instead of {expected['bytes']}")
        if _sha256(path) != expected["sha256"]:
            raise CorruptCheckpoint(f"{path}: sha256 differs from the one in {INDEX}")
        self._checked.add(name)
        return path

    def names(self, kind: str) -> list[str]:
        """Logical tensors of one kind (`master`, `exp_avg`, `exp_avg_sq`, `ema`)."""
        return sorted(key.split("/", 1)[1] for key in self._tensors if key.startswith(kind + "/"))

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        return tuple(self._logical(kind, name)["shape"])

    def _logical(self, kind: str, name: str) -> Any:
        if f"{kind}/{name}" not in self._tensors:
            raise ValueError(f"{self.folder} holds no tensor {kind}/{name}: it was saved from another model")
        return self._tensors[f"{kind}/{name}"]

    def read(self, kind: str, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """The rectangle of `shape` at `offset` of a logical tensor, put together from whatever pieces hold it."""
        logical = self._logical(kind, name)
        beyond = any(o + n > size for o, n, size in zip(offset, shape, logical["shape"], strict=True))
        if beyond:
            raise ValueError(
                f"{self.folder}: {kind}/{name} has shape {logical['shape']} there, but this model asks for "
                f"{list(shape)} at {list(offset)}: it was saved from another model"
            )
        out = torch.empty(shape, dtype=getattr(torch, logical["dtype"]))
        filled = 0
        for piece in logical["pieces"]:
            starts = [max(o, p) for o, p in zip(offset, piece["offset"], strict=True)]
            ends = [
                min(o + n, p + m) for o, n, p, m in zip(offset, shape, piece["offset"], piece["shape"], strict=True)
            ]
            if any(end <= start for start, end in zip(starts, ends, strict=True)):
                continue
            source = tuple(slice(s - p, e - p) for s, e, p in zip(starts, ends, piece["offset"], strict=True))
            target = tuple(slice(s - o, e - o) for s, e, o in zip(starts, ends, offset, strict=True))
            with safe_open(self._checked_path(piece["file"]), framework="pt") as file:
                out[target] = file.get_slice(piece["key"])[source] if source else file.get_tensor(piece["key"])
            filled += out[target].numel()
        if filled != out.numel():
            raise CorruptCheckpoint(f"{self.folder}: {kind}/{name} has {filled} of {out.numel()} values")
        return out

    def tensor(self, kind: str, name: str) -> Tensor:
        shape = self.shape(kind, name)
        return self.read(kind, name, (0,) * len(shape), shape)


def committed_steps(root: Path) -> list[int]:
    """Steps under `root` whose save finished, oldest first."""
    found = (re.fullmatch(r"step_(\d{8,})", path.name) for path in root.glob("step_*") if (path / COMMIT).is_file())
    return sorted(int(match[1]) for match in found if match)


def newest_checkpoint(root: Path) -> CheckpointReader | None:
    """The newest checkpoint that is whole; damaged ones are named in the log and passed over.

    Raises:
        CorruptCheckpoint: there are checkpoints and all are damaged, so that nobody restarts from zero unawares.
    """
    damaged = ""
    for step in reversed(committed_steps(root)):
        try:
            reader = CheckpointReader(step_folder(root, step))
            reader.verify()
            return reader
        except CorruptCheckpoint as error:
            damaged = str(error)
            log.warning("checkpoint passed over: %s", error)
    if damaged:
        raise CorruptCheckpoint(f"no usable checkpoint in {root}; the last one looked at: {damaged}")
    return None


def prune_checkpoints(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints (at least one stays), and what killed saves left."""
    for unfinished in root.glob("step_*.tmp"):
        shutil.rmtree(unfinished)
    for step in committed_steps(root)[: -max(keep, 1)]:
        shutil.rmtree(step_folder(root, step))
