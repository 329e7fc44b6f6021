"""Decode what a step of a run trained on into a sheet of pictures.

    python -m trainer.look runs/demo/dit --step 1234 --sheet sheet.png

`python -m data.order RUN --step 1234 --decode sheet.png` prints the step and calls this.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from data.loader import Sample
from data.order import check_sheet
from data.plan import step_of_run
from data.sample_reader import SampleReader
from model.codec import codec_identity, load_codec
from trainer.compose import to_dataclass, user_errors
from trainer.config import TrainConfig
from trainer.media import SheetBlock, SheetRow, to_frames, write_sheet
from trainer.online import supplied

MOST_SAMPLES = 48


def look(run_folder: Path, step: int, sheet: Path, *, codec_folder: Path | None = None) -> list[str]:
    """Write the sheet; returns the keys of the samples on it, the first of the step."""
    check_sheet("--sheet", sheet)
    shards, _, packs, _ = step_of_run(run_folder, step)
    config = to_dataclass(TrainConfig, yaml.safe_load((run_folder / "config.yaml").read_text(encoding="utf-8")))
    shards, codec_folder = supplied(config, shards), codec_folder or Path(config.data.codec)
    for manifest in shards.manifests:
        manifest.require_identity(codec=codec_identity(codec_folder))
    codec, reader = load_codec(codec_folder).eval(), SampleReader(shards)
    rows = [row for pack in packs for row in pack.rows]
    blocks, keys = [], []
    for row in rows[:MOST_SAMPLES]:
        sample = reader.read(row)
        assert sample.latent_CTHW is not None
        with torch.inference_mode():
            video_3THW = codec.to_video(sample.latent_CTHW[None].float())[0]
        blocks.append(
            SheetBlock(
                heading=_heading(sample), rows=[SheetRow(label=_label(sample), frames_T3HW=to_frames(video_3THW))]
            )
        )
        keys.append(sample.key)
    reader.close()
    left = len(rows) - len(keys)
    write_sheet(sheet, blocks, title=f"{run_folder}, step {step}", footer=f"and {left} samples more" if left else None)
    return keys


def _heading(sample: Sample) -> str:
    return max(sample.captions.values(), key=len)


def _label(sample: Sample) -> str:
    return f"{sample.key}, {sample.video_tokens} tokens, {sample.fps:g} fps"


@user_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m trainer.look", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--step", type=int, required=True, help="step, counted from 1")
    parser.add_argument("--sheet", type=Path, required=True, metavar="PNG")
    parser.add_argument("--codec", type=Path, help="codec folder, where it is no longer that of the run's config")
    options = parser.parse_args(arguments)
    keys = look(options.run, options.step, options.sheet, codec_folder=options.codec)
    print(f"{len(keys)} samples in {options.sheet}")


if __name__ == "__main__":
    sys.exit(main())
