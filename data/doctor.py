"""What training will make of a folder: of clips before they are encoded, or of latent shards.

    python -m data.doctor clips/ --fps 8 --max-frames 17         what each clip becomes, and why any is dropped
    python -m data.doctor latents/ --deep --ranks 8 --packs-per-step 32

Latent shards are checked against their manifest: sizes and structure, with --deep every byte too. Exit code 0: all is
well; 1: something is damaged, dropped or can never be trained on; 2: a mistake in the command.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from data.balance import PackCost
from data.clip_outlook import ClipFolder, Fate, bucket_sizes
from data.clips import INDEX_NAME
from data.command import command
from data.integrity import check_set
from data.latent_shard import read_latent_shard
from data.lattice import ClipConfig
from data.manifest import FILE_NAME, Manifest
from data.outlook import Distribution, Outlook, PackSettings, foretell, foretell_clips, starving
from data.pack import too_large
from data.processes import default_workers
from data.progress import Progress
from data.report import ClipReport, Problems, printable
from data.rows import MEMBERS
from data.split import SPLITS
from data.storage import Storage
from data.tar_scan import split_name

_TOKENS_PER_PACK = 4096


def examine_latents(given: argparse.Namespace) -> int:
    """Integrity, buckets and an epoch of latent shards; the exit code."""
    problems = Problems()
    try:
        manifest = Manifest.read(given.path, check_shards=False)
        workers = given.workers or default_workers(given.deep * sum(shard.bytes for shard in manifest.shards))
        check_set(manifest, problems, deep=given.deep, workers=workers)
    except ValueError as error:
        # A manifest that cannot be read, as a whole or in a column: there is nothing to go on with.
        print(f"DAMAGED  {error}")
        return 1
    identity = manifest.identity
    print(f"manifest {manifest.hash[:12]}, codec {identity.codec[:16]}, text {identity.text[:16]}")
    rate = "their own rates" if identity.fps is None else f"{identity.fps:g} fps"
    print(f"         {len(manifest):,} samples in {len(manifest.shards):,} shards, {rate}, patch {identity.patch_size}")
    for line in problems.lines(given.show):
        print(f"DAMAGED  {line}")
    checked = "every byte" if given.deep else "sizes and structure (--deep for every byte)"
    print(f"checked  {checked}: {problems.count} problems")
    if planned := sum(shard.is_planned for shard in manifest.shards):
        print(f"planned  {planned} shards: their samples are made when training needs them")
    codes = [_examine_split(manifest.select(split), split, given) for split in SPLITS]
    return max(int(problems.count > 0), *codes)


def _examine_split(manifest: Manifest, split: str, given: argparse.Namespace) -> int:
    if not len(manifest):
        print(f"\n{split}: no samples")
        return 0
    is_training, settings = split == "train", _settings(given)
    distribution = Distribution(buckets=manifest.buckets())
    print(f"\n{split}: {distribution.samples:,} samples, {distribution.tokens:,} tokens")
    _show_buckets(distribution, f"{given.path}, {split}", given.picture if is_training else None)
    large = too_large(manifest, settings.tokens_per_pack)
    for name, (count, key, tokens) in large.items():
        print(
            f"LOST     {name}: {count} samples do not fit a pack of {settings.tokens_per_pack} tokens, the largest is "
            f"{key} with {tokens}: raise --tokens-per-pack (data.tokens_per_pack), or encode with a lower max_tokens"
        )
    if is_training:
        _show_outlook(foretell(manifest, settings), distribution, given)
    return int(bool(large))


def _show_buckets(distribution: Distribution, title: str, picture: Path | None) -> None:
    for line in distribution.lines():
        print(f"  {line}")
    if picture:
        distribution.save_picture(picture, title)
        print(f"picture  {picture}")


def _show_outlook(outlook: Outlook | None, distribution: Distribution, given: argparse.Namespace) -> None:
    if outlook is not None:
        print("\n".join(outlook.lines(_settings(given))))
        for line in starving(distribution.buckets, outlook.steps, given.starving_steps):
            print(f"STARVING {line}")


def examine_clips(folder: ClipFolder, given: argparse.Namespace) -> int:
    """What clips become; the exit code."""
    config, settings, report = _clip_config(given), _settings(given), ClipReport()
    fates: list[Fate] = []
    with Progress("looking at", len(folder) or None, "clip") as progress:
        for fate in folder.fates(config, report):
            fates.append(fate)
            note = f"{len(fates)} windows" + (f", {len(report.skipped)} dropped" if report.skipped else "")
            progress.advance(note, by=report.source_clips + len(report.skipped) - progress.done)
    for line in _fate_lines(folder, fates, report, given.show):
        print(line)
    if not fates:
        return 1
    distribution = Distribution(buckets=bucket_sizes(fates))
    _show_buckets(distribution, str(given.path), given.picture)
    large = [fate for fate in fates if fate.tokens > settings.tokens_per_pack]
    if large:
        worst = max(large, key=lambda fate: fate.tokens)
        print(
            f"LOST     {len(large)} windows do not fit a pack of {settings.tokens_per_pack} tokens, the largest is "
            f"{worst.key} with {worst.tokens}: raise --tokens-per-pack, or give --max-tokens"
        )
    _show_outlook(foretell_clips([fate.tokens for fate in fates], settings), distribution, given)
    return int(bool(report.skipped or large))


def _fate_lines(folder: ClipFolder, fates: Sequence[Fate], report: ClipReport, show: int) -> list[str]:
    lines = [str(fate) for fate in fates[:show]]
    if len(fates) > show:
        lines.append(f"... and {len(fates) - show} more windows (--show {len(fates)} for all)")
    lines += report.lines(0)[:1]
    lines += [f"DROPPED  {item}" for item in report.skipped[:show]]
    if len(report.skipped) > show:
        lines.append(f"DROPPED  ... and {len(report.skipped) - show} more (--show {len(report.skipped)} for all)")
    if report.skipped:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in sorted(report.reasons().items()))
        lines.append(f"reasons  {reasons}")
    others = Counter[str]()
    for extension, count in folder.others.items():
        others[printable(extension) if extension.startswith(".") else "without extension"] += count
    lines += [f"note     {count} files {extension} are not looked at" for extension, count in sorted(others.items())]
    if folder.shards and not (folder.folder / INDEX_NAME).is_file():
        lines.append(f"note     no {INDEX_NAME} beside the shards: damage that can be decoded is not noticed")
    return lines


def _refuse_latents(storage: Storage) -> None:
    """Latent shards need a manifest. Damage is left to the one who reads the clips."""
    for name in storage.names("tar")[:1]:
        entries = read_latent_shard(storage.root, name, deep=False).entries
        if any(split_name(entry.name)[1] == MEMBERS["latent"] for entry in entries):
            raise ValueError(
                f"{storage.root} holds latent shards without {FILE_NAME}: run `python -m data.index` first"
            )


def _settings(given: argparse.Namespace) -> PackSettings:
    linear, quadratic, text = given.cost
    values: dict[str, Any] = {field.name: getattr(given, field.name) for field in fields(PackSettings)}
    values["packs_per_step"] = given.ranks if given.packs_per_step is None else given.packs_per_step
    return PackSettings(**values | {"cost": PackCost(linear=linear, quadratic=quadratic, text=text)})


def _clip_config(given: argparse.Namespace) -> ClipConfig:
    values: dict[str, Any] = {field.name: getattr(given, field.name) for field in fields(ClipConfig)}
    return ClipConfig(**values | {name: tuple(values[name]) for name in ("strides", "patch_size")})


def _fps(text: str) -> float | None:
    return None if text == "own" else float(text)


def _cost(text: str) -> tuple[float, float, float]:
    linear, quadratic, words = (float(part) for part in text.split(","))
    return linear, quadratic, words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", help="clip shards, videos and images, or latent shards (or their URL)")
    add = parser.add_argument
    add("--show", type=int, default=20, metavar="N", help="clips and problems to list (default: %(default)s)")
    add("--picture", type=Path, metavar="FILE", help="draw the distribution as a PNG")
    add("--workers", type=int, help="processes that check shards (default: by the bytes)")
    add = parser.add_argument_group("latent shards").add_argument
    add("--deep", action="store_true", help="read every byte: checksums of members and shards, NaN, shapes")
    add = parser.add_argument_group("packs, as in the run's config").add_argument
    add("--tokens-per-pack", type=int, default=_TOKENS_PER_PACK, help="default: %(default)s")
    add("--packs-per-step", type=int, help="default: one for each rank")
    add("--ranks", type=int, default=1, help="data-parallel ranks (default: %(default)s)")
    add("--cost", type=_cost, default=(1.0, 0.0, 0.0), metavar="LINEAR,QUADRATIC,TEXT", help="default: 1,0,0")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--window", type=int, default=4096, help="samples that are shuffled and packed together (default: %(default)s)")
    add("--most-steps", type=int, default=1000, help="steps to plan; more are estimated (default: %(default)s)")
    add(
        "--starving-steps",
        type=int,
        default=100,
        help="a bucket seen less than once in so many steps starves (%(default)s)",
    )
    add = parser.add_argument_group("clips, as in the config of trainer.encode").add_argument
    add("--fps", type=_fps, default=8.0, help="rate to resample to, or `own` (default: %(default)s)")
    add("--max-frames", type=int, default=17, help="default: %(default)s")
    add("--min-frames", type=int, default=5, help="default: %(default)s")
    add("--max-area", type=int, help="pixels a frame above which clips are downscaled")
    add("--max-tokens", type=int, help="tokens a window above which clips are downscaled")
    add("--square", type=int, help="crop to squares of this side")
    add("--strides", type=int, nargs=3, default=(4, 8, 8), metavar="N", help="default: 4 8 8")
    add("--patch-size", type=int, nargs=3, default=(1, 2, 2), metavar="N", help="default: 1 2 2")
    return parser


@command("stopped; nothing was changed, and the same command starts again")
def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.workers is not None and given.workers < 1:
        raise ValueError(f"--workers {given.workers} must be at least 1")
    _settings(given)
    storage = Storage(given.path)
    if storage.exists(FILE_NAME):
        return examine_latents(given)
    if not storage.is_local:
        raise ValueError(f"{given.path} has no {FILE_NAME}: of URLs only latent shards with one can be examined")
    _refuse_latents(storage)
    return examine_clips(ClipFolder.of(Path(given.path)), given)


if __name__ == "__main__":
    sys.exit(main())
