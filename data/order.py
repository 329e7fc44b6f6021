"""What was in a step of a run, or will be: its packs and samples, in the order of the ranks.

    python -m data.order runs/demo/dit --step 1234
    python -m data.order runs/demo/dit --step 1234 --ranks 8
    python -m data.order runs/demo/dit --step 1234 --decode sheet.png

`--decode` also decodes the samples into a sheet to look at.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.balance import imbalance
from data.command import command
from data.mixture import DataSet
from data.pack import PlannedPack
from data.plan import PlanConfig, step_of_run


def lines(shards: DataSet, config: PlanConfig, packs: Sequence[PlannedPack], ranks: int) -> Iterator[str]:
    if ranks < 1 or len(packs) % ranks:
        raise ValueError(f"--ranks {ranks} must divide the {len(packs)} packs of a step")
    tokens = sum(pack.video_tokens for pack in packs)
    fill = tokens / (len(packs) * config.tokens_per_pack)
    yield (
        f"{sum(len(pack.rows) for pack in packs)} samples in {len(packs)} packs, {tokens:,} tokens, fill {fill:.3f}, "
        f"work of the busiest of {ranks} ranks {imbalance([pack.cost for pack in packs], ranks):.3f} of the mean"
    )
    for number, pack in enumerate(packs):
        yield (
            f"rank {number * ranks // len(packs)} pack {number}: epoch {pack.epoch}, {len(pack.rows)} samples, "
            f"{pack.video_tokens} tokens"
        )
        for row, visit in zip(pack.rows, pack.visits, strict=True):
            manifest, own = shards.place(row)
            place = manifest.row(own)
            grid = f"{place['grid_t']}x{place['grid_h']}x{place['grid_w']}"
            yield (
                f"  {place['key']}  {place['video_tokens']} tokens, latent {grid}, text {place['text_tokens']}, "
                f"visit {visit & 0xFFFFFFFF}, {manifest.storage.where(place['shard'])}"
            )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.order", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--step", type=int, required=True, help="step, counted from 1; one to come is told too")
    parser.add_argument("--ranks", type=int, default=1, help="data-parallel ranks to share the packs")
    parser.add_argument("--decode", type=Path, metavar="PNG", help="decode the samples into a sheet")
    return parser.parse_args(arguments)


def check_sheet(option: str, sheet: Path) -> None:
    """ValueError where no sheet can be written to `sheet`, which came by `option`."""
    if sheet.suffix.lower() != ".png":
        raise ValueError(f"{option} {sheet} must end in .png: a sheet is a PNG")
    if not sheet.absolute().parent.is_dir():
        raise ValueError(f"{option} {sheet}: there is no such folder to write it into; make {sheet.absolute().parent}")
    if sheet.is_dir():
        raise ValueError(f"{option} {sheet} is a folder: give the name of a file")


@command("stopped")
def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.decode is not None:
        check_sheet("--decode", options.decode)
    shards, config, packs, _ = step_of_run(options.run, options.step)
    for line in lines(shards, config, packs, options.ranks):
        print(line)
    if options.decode is None:
        return 0
    # Decoding needs a network, and networks are not known here.
    look = [str(options.run), "--step", str(options.step), "--sheet", str(options.decode)]
    return subprocess.run([sys.executable, "-m", "trainer.look", *look], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
