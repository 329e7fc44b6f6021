"""Make the manifest of latent shards that were made elsewhere.

    python -m data.index shards/ --codec runs/demo/codec --text t5-base --fps 8 --strides 4 8 8 --patch-size 1 2 2

Shards are plain WebDataset tars, in FOLDER or in folders under it, whose samples have three members:
KEY.json ({"captions": {KIND: TEXT}}, and "source", "fps", "split" where they are known), KEY.latent.safetensors
(tensor "latent", channels x frames x rows x columns, normalised), KEY.text.safetensors (KIND -> tokens x width).
Every byte is read, and compared with a file SHA256SUMS (of `sha256sum`) if there is one. Where anything is wrong all
of it is listed and nothing is written.
"""

import argparse
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import xxhash

from data.command import command
from data.index_rows import SUMS_NAME, IndexConfig, IndexedSet
from data.latent_shard import parse_tensors, read_latent_shard
from data.manifest import FILE_NAME, NULL_TEXT_NAME, Identity, write_manifest
from data.processes import default_workers, in_processes
from data.progress import Progress
from data.shards import write_bytes
from data.storage import Storage

_SHOWN = 50
_SUM = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?(.+)")
_CODEC_FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True, kw_only=True)
class NullText:
    """The embedding of the empty caption: the bytes of its file, and its width."""

    data: bytes
    width: int


def index(
    folder: str,
    config: IndexConfig,
    *,
    null_text: Path | None = None,
    out: Path | None = None,
    replace: bool = False,
    workers: int | None = None,
) -> tuple[str, IndexedSet]:
    """Read all shards and write the manifest; returns its hash and what it holds.

    Raises ValueError for a mistake in what is asked for. Where something is wrong with the shards nothing is written,
    and the hash is "".
    """
    storage = Storage(folder)
    target = _target(storage, out, replace)
    null = _null_text(storage, null_text)
    names = storage.names("tar")
    if not names:
        raise ValueError(f"{folder} holds no latent shards (*.tar): is it the right folder?")
    found = _read_all(storage, names, workers, IndexedSet(config, text_dim=null.width, sha256=_sums(storage)))
    for name in _missing(storage, names):
        found.problems.add(name, "", f"missing, though {SUMS_NAME} names it")
    if found.problems.count:
        return "", found
    identity = Identity(
        codec=config.codec,
        text=config.text,
        inputs=_inputs_hash(found, null),
        fps=config.fps,
        strides=config.strides,
        latent_channels=found.latent_channels,
        text_dim=null.width,
        caption_kinds=tuple(sorted(found.caption_kinds)),
        patch_size=config.patch_size,
        null_text_xxh3=xxhash.xxh3_64_intdigest(null.data),
    )
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".index-") as scratch:
        manifest_hash = write_manifest(Path(scratch), found.columns, identity=identity, shards=found.shards)
        write_bytes(Path(scratch) / NULL_TEXT_NAME, null.data)
        # The manifest last: without it, the rest is not looked at.
        for name in (NULL_TEXT_NAME, FILE_NAME):
            os.replace(Path(scratch) / name, target / name)
    return manifest_hash, found


def codec_name(codec: str) -> str:
    """Identity of a codec: of a codec folder the hash that `trainer.encode` writes too, else the name itself."""
    folder = Path(codec)
    if not all((folder / name).is_file() for name in _CODEC_FILES):
        if folder.exists():
            raise ValueError(f"--codec {codec} is no codec folder ({', '.join(_CODEC_FILES)}): give one, or a name")
        return codec
    parts = []
    for name in _CODEC_FILES:
        with open(folder / name, "rb") as file:
            parts.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _target(storage: Storage, out: Path | None, replace: bool) -> Path:
    """Folder that the manifest goes into."""
    if out is None and not storage.is_local:
        raise ValueError(f"{storage.root} is read only: name a folder for the manifest with --out")
    target = out or Path(storage.root)
    if storage.is_local and not Path(storage.root).is_dir():
        raise ValueError(f"{storage.root} is not a folder: give the folder of latent shards (*.tar)")
    if (target / FILE_NAME).exists() and not replace:
        raise ValueError(f"{target / FILE_NAME} exists: check it with `python -m data.doctor`, or give --replace")
    return target


def _null_text(storage: Storage, given: Path | None) -> NullText:
    where = str(given) if given else storage.where(NULL_TEXT_NAME)
    if given is None and not storage.exists(NULL_TEXT_NAME):
        raise ValueError(
            f"{where} is missing: give the embedding of the empty caption (tensor `text`, tokens x width) with "
            "--null-text FILE; guidance needs it"
        )
    data = given.read_bytes() if given else storage.read(NULL_TEXT_NAME)
    tensors = parse_tensors(data)
    if isinstance(tensors, str):
        raise ValueError(f"{where} is {tensors}: write it with safetensors, tensor `text` of tokens x width")
    shape = tensors.shapes.get("text", ())
    if len(shape) != 2 or min(shape) < 1 or tensors.unfit:
        why = next(iter(tensors.unfit.values()), f"shape {shape}")
        raise ValueError(f"{where} has no good tensor `text` ({why}): it must be finite floats, tokens x width")
    return NullText(data=data, width=shape[1])


def _read_all(storage: Storage, names: Sequence[str], workers: int | None, found: IndexedSet) -> IndexedSet:
    if workers is None:
        workers = default_workers(sum(size or 0 for size in storage.sizes(list(names)).values()))
    read = partial(read_latent_shard, storage.root)
    with Progress("reading", len(names), "shard") as progress:
        for part in in_processes(read, names, min(workers, len(names))):
            found.add(part)
            count = found.problems.count
            progress.advance(f"{len(found):,} samples" + (f", {count} problems" if count else ""))
    return found


def _sums(storage: Storage) -> dict[str, str] | None:
    """Hash of each shard as `sha256sum` lists them; None without such a list."""
    if not storage.exists(SUMS_NAME):
        return None
    sums = {}
    for number, line in enumerate(storage.read(SUMS_NAME).decode().splitlines(), start=1):
        match = _SUM.fullmatch(line)
        if match is None:
            raise ValueError(f"{storage.where(SUMS_NAME)}, line {number}: {line!r} is none of sha256sum: correct it")
        sums[match[2]] = match[1]
    return sums


def _missing(storage: Storage, names: Sequence[str]) -> list[str]:
    return sorted(name for name in _sums(storage) or {} if name.endswith(".tar") and name not in names)


def _inputs_hash(found: IndexedSet, null: NullText) -> str:
    digest = hashlib.sha256(repr(found.config).encode() + null.data)
    for shard in found.shards:
        digest.update(f"{shard.name} {shard.sha256}\n".encode())
    return digest.hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.index", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="folder of latent shards, or a URL that fsspec can read (then give --out)")
    add("--codec", required=True, help="folder of the codec that made the latents, or a name for it")
    add(
        "--text",
        required=True,
        metavar="NAME",
        help="identity of the text encoder: trainer.encode dry_run=true says it",
    )
    add("--fps", required=True, type=_fps, help="frames a second of all clips, or `own`: the json of each says it")
    add("--strides", required=True, type=int, nargs=3, metavar="N", help="frames, rows, columns a latent value")
    add("--patch-size", required=True, type=int, nargs=3, metavar="N", help="latent values a token")
    add(
        "--heldout-fraction",
        type=float,
        help="share of the sources kept from training (default: as the json says; 0.1)",
    )
    add(
        "--null-text",
        type=Path,
        metavar="FILE",
        help=f"embedding of the empty caption, if {NULL_TEXT_NAME} is not there",
    )
    add("--out", type=Path, metavar="FOLDER", help="where the manifest goes, if not beside the shards")
    add("--replace", action="store_true", help="replace a manifest that is there")
    add("--workers", type=int, help="processes that read (default: by the bytes there are)")
    add("--show", type=int, default=_SHOWN, metavar="N", help="problems to list (default: %(default)s)")
    return parser


def _fps(text: str) -> float | None:
    return None if text == "own" else float(text)


@command("stopped; the same command starts again")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit code: 0 written, 1 something is wrong with the shards, 2 with the command."""
    given = _parser().parse_args(arguments)
    if given.workers is not None and given.workers < 1:
        raise ValueError(f"--workers {given.workers} must be at least 1")
    config = IndexConfig(
        codec=codec_name(given.codec),
        text=given.text,
        fps=given.fps,
        strides=tuple(given.strides),
        patch_size=tuple(given.patch_size),
        heldout_fraction=given.heldout_fraction,
    )
    manifest_hash, found = index(
        given.folder,
        config,
        null_text=given.null_text,
        out=given.out,
        replace=given.replace,
        workers=given.workers,
    )
    return _tell(given, manifest_hash, found)


def _tell(given: argparse.Namespace, manifest_hash: str, found: IndexedSet) -> int:
    if found.problems.count:
        for line in found.problems.lines(given.show):
            print(line)
        print(f"error: {found.problems.count} problems in {given.folder}, so no manifest was written", file=sys.stderr)
        return 1
    for line in found.lines():
        print(line)
    target = given.out or given.folder
    print(f"written  {Path(target) / FILE_NAME}, hash {manifest_hash[:12]}")
    if given.out:
        print(f"note     copy {FILE_NAME} and {NULL_TEXT_NAME} to {given.folder}, where the shards are")
    return 0


if __name__ == "__main__":
    sys.exit(main())
