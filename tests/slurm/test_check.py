"""What would not work on the nodes is told before the queue, in one sentence."""

import re
import shutil
from collections import namedtuple
from dataclasses import replace

import pytest

from slurm.check import check_training
from slurm.cluster import ClusterConfig
from tests.slurm.checkout_case import ROOT, training
from tests.trainer.run_case import write_inputs
from trainer.compose import to_dataclass
from trainer.config import TrainConfig


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture
def config(inputs, monkeypatch) -> TrainConfig:
    from hydra import compose, initialize_config_dir

    monkeypatch.chdir(inputs)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return to_dataclass(TrainConfig, compose("train", [*training("checked"), "parallel=tp2_pp2"]))


def test_a_run_that_fits_is_described(config):
    lines = check_training(config, ClusterConfig(), nodes=2, ranks_per_node=2)
    assert lines[0] == "nodes: 2 x 2 ranks"
    assert "layout: 2 tensor with sequence parallelism x 2 pipeline x 1 data, ZeRO-1, fp32, 4 in all" in lines
    assert any(re.fullmatch(r"memory: each of ranks \d-\d needs .* KiB, without activations", line) for line in lines)
    assert any(line.startswith("disk: 3 checkpoints of ") for line in lines)


def test_the_nodes_gpus_decide_the_precision_and_not_this_machines(config):
    lines = check_training(config, ClusterConfig(gpus_per_node=2, gpu_memory_gib=80), nodes=2, ranks_per_node=2)
    assert any("ZeRO-1, bf16, 4 in all" in line for line in lines)
    assert not [line for line in lines if "without activations" in line]


def test_tensor_ranks_on_several_nodes_are_noted(config):
    lines = check_training(config, ClusterConfig(), nodes=4, ranks_per_node=1)
    assert "note: parallel.tensor=2 reaches over nodes, where messages are slow" in lines


def test_a_layout_that_does_not_fit_the_nodes(config):
    with pytest.raises(ValueError, match=r"^nodes=3 x 2 ranks: 6 processes cannot hold whole copies of the model: ten"):
        check_training(config, ClusterConfig(), nodes=3, ranks_per_node=2)


def test_a_layout_that_does_not_fit_the_gpus(config):
    small = ClusterConfig(gpus_per_node=2, gpu_memory_gib=1e-5)
    with pytest.raises(
        ValueError, match=r"each of ranks \d-\d needs .* MiB, but a GPU has cluster\.gpu_memory_gib=1e-05: "
    ):
        check_training(config, small, nodes=2, ranks_per_node=2)


def test_shards_that_are_not_there(config):
    absent = replace(config, data=replace(config.data, folder="nowhere"))
    with pytest.raises(ValueError, match=r"nowhere has no manifest\.parquet: make latent shards with"):
        check_training(absent, ClusterConfig(), nodes=2, ranks_per_node=2)


def test_a_disk_that_is_too_full(config, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(
        ValueError, match=r"disk: 3 checkpoints of .*, 1000 B free in .*: make room, choose another fol"
    ):
        check_training(config, ClusterConfig(), nodes=2, ranks_per_node=2)
