"""Checkpoints: any cut of a tensor reads back exactly; a damaged or half-written one is never loaded."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.fragments import Piece
from trainer import checkpoint
from trainer.checkpoint import CheckpointReader, CorruptCheckpoint, newest_checkpoint, prune_checkpoints, step_folder


def alone(report: Any) -> list[Any]:
    return [report]


def halves(name: str, tensor: Tensor, dim: int) -> list[Piece]:
    """A logical tensor as the two rectangles that two tensor-parallel ranks would write."""
    size = tensor.shape[dim] // 2
    pieces = []
    for start in (0, size):
        offset = tuple(start if axis == dim else 0 for axis in range(tensor.dim()))
        part = tensor.narrow(dim, start, tensor.shape[dim] - start if start else size)
        pieces.append(Piece(kind="master", name=name, global_shape=tuple(tensor.shape), offset=offset, tensor=part))
    return pieces


def save(root: Path, tensors: dict[str, Tensor], step: int) -> Path:
    pieces = [piece for name, tensor in tensors.items() for piece in halves(name, tensor, tensor.dim() - 1)]
    return checkpoint.write_checkpoint(root, pieces, state={"step": step}, config_yaml="a: 1\n", rank=0, gather=alone)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"w": torch.randn(6, 9, generator=generator), "b": torch.randn(7, generator=generator)}


def test_any_rectangle_reads_back_exactly(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    reader = CheckpointReader(save(tmp_path, tensors, 3))
    assert reader.state == {"step": 3}
    assert reader.names("master") == ["b", "w"]
    assert torch.equal(reader.tensor("master", "w"), tensors["w"])
    for row, column in ((0, 0), (2, 3), (5, 4)):
        part = reader.read("master", "w", (row, column), (6 - row, 9 - column))
        assert torch.equal(part, tensors["w"][row:, column:])
    assert torch.equal(reader.read("master", "b", (2,), (3,)), tensors["b"][2:5])


def test_another_models_shapes_are_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    reader = CheckpointReader(save(tmp_path, tensors, 1))
    with pytest.raises(ValueError, match="another model"):
        reader.read("master", "w", (0, 0), (7, 9))
    with pytest.raises(ValueError, match="no tensor master/x"):
        reader.tensor("master", "x")


def test_every_flipped_byte_is_found(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    folder = save(tmp_path, tensors, 1)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(CorruptCheckpoint):
                CheckpointReader(folder).verify()
        for length in (0, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(CorruptCheckpoint):
                CheckpointReader(folder).verify()
        path.write_bytes(whole)
    CheckpointReader(folder).verify()


def test_newest_passes_over_damage_and_never_restarts_unawares(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    assert newest_checkpoint(tmp_path) is None
    first, second = save(tmp_path, tensors, 1), save(tmp_path, tensors, 2)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.state["step"] == 2
    (second / "pieces-00000.safetensors").write_bytes(b"")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.state["step"] == 1
    (first / "index.json").write_text("{}")
    with pytest.raises(CorruptCheckpoint, match="no usable checkpoint"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("failing", ["save_file", "_write_text"])
def test_full_disk_leaves_nothing_half_written(
    tmp_path: Path, tensors: dict[str, Tensor], failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, tensors, 1)

    def full(*args: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoint, failing, full)
    with pytest.raises(OSError, match="the disk is full.*earlier checkpoints are intact"):
        save(tmp_path, tensors, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert newest_checkpoint(tmp_path) is not None


def test_another_ranks_failure_is_raised_here_too(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    def with_failing_peer(report: Any) -> list[Any]:
        return [report, ("the disk is full", None)]

    with pytest.raises(OSError, match="rank 1: the disk is full"):
        checkpoint.write_checkpoint(
            tmp_path,
            halves("w", tensors["w"], 0),
            state={"step": 5},
            config_yaml="",
            rank=0,
            gather=with_failing_peer,
        )
    assert not list(tmp_path.iterdir())


def test_prune_keeps_the_newest(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    for step in (1, 2, 3):
        save(tmp_path, tensors, step)
    (tmp_path / "step_00000004.tmp").mkdir()  # a save that was killed
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]
    prune_checkpoints(tmp_path, keep=0)
    assert step_folder(tmp_path, 3).is_dir()
