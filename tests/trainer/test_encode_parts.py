"""Finished parts: taken up again by another process, in the same order and with the same bytes."""

from pathlib import Path

import pytest
import torch

from data.latents import LatentConfig, LatentWriter
from tests.data.latent_set import identity, sample
from trainer.encode_parts import FOLDER_NAME, EncodedParts, stands

CLIPS = [Path(f"clips-{n}.tar") for n in range(7)]
INPUTS = "i" * 64


def begin(scratch: Path, inputs: str = INPUTS) -> tuple[EncodedParts, LatentWriter]:
    scratch.mkdir(exist_ok=True)
    writer = LatentWriter(scratch, LatentConfig(samples_per_shard=3, dtype="float32"), patch_size=(1, 2, 2))
    parts = EncodedParts(scratch, CLIPS, inputs=inputs, shards_per_part=2)
    parts.restore(writer)
    return parts, writer


def write(parts: EncodedParts, writer: LatentWriter, count: int) -> None:
    """Five samples for each clip shard of the next `count` parts."""
    for shards in list(parts.left())[:count]:
        for path in shards:
            number = 5 * CLIPS.index(path)
            for one in range(number, number + 5):
                writer.write(sample(one))
            parts.seen.add(path.name)
            parts.report.source_clips += 5
            parts.report.skip(shard=path.name, key="bad", reason="too short")
        parts.commit(writer)


def end(parts: EncodedParts, writer: LatentWriter) -> dict[str, bytes]:
    writer.finish(null_text=torch.ones(2, 8), identity=identity())
    parts.remove()
    folder = writer.folder
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stops", [[1], [2], [1, 1, 1], [4], [0, 3]])
def test_any_stops_leave_the_same_shards_and_manifest(tmp_path: Path, stops: list[int]) -> None:
    parts, writer = begin(tmp_path / "whole")
    assert [len(shards) for shards in parts.left()] == [2, 2, 2, 1]
    write(parts, writer, 4)
    whole_report, whole = parts.report, end(parts, writer)
    scratch = tmp_path / "stopped"
    for count in stops:
        parts, writer = begin(scratch)
        write(parts, writer, count)
        writer.write(sample(900))  # belongs to a part that is not finished
        (scratch / "manifest.parquet").write_bytes(b"half")
    parts, writer = begin(scratch)
    assert parts.done == sum(stops)
    assert parts.seen == {path.name for path in CLIPS[: 2 * sum(stops)]}
    write(parts, writer, 4)
    assert parts.report == whole_report
    assert end(parts, writer) == whole


def test_nothing_stands_before_the_first_part_or_for_other_inputs(tmp_path: Path) -> None:
    parts, writer = begin(tmp_path / "scratch")
    assert not stands(tmp_path / "scratch", INPUTS)
    write(parts, writer, 1)
    assert stands(tmp_path / "scratch", INPUTS)
    assert not stands(tmp_path / "scratch", "j" * 64)


def test_a_duplicate_of_an_earlier_part_is_still_refused(tmp_path: Path) -> None:
    write(*begin(tmp_path / "scratch"), 1)
    _, writer = begin(tmp_path / "scratch")
    with pytest.raises(ValueError, match="duplicate key: 'film/clip0000' was written before"):
        writer.write(sample(0))


def test_an_unreadable_state_says_what_to_delete(tmp_path: Path) -> None:
    write(*begin(tmp_path / "scratch"), 1)
    (tmp_path / "scratch" / FOLDER_NAME / "done.json").write_text("{")
    with pytest.raises(ValueError, match="done.json cannot be read .* delete .*scratch to encode from the start"):
        stands(tmp_path / "scratch", INPUTS)
