"""What the grid of a run can do, and that it leaves nothing behind."""

import socket

import pytest
from layout_reference import read_ranks

from parallel.dims import ParallelDims
from parallel.runtime import Grid

GROUPS = ["TENSOR_MODEL", "CONTEXT", "DATA", "DATA_WITH_CP", "MODEL", "TENSOR_AND_CONTEXT", "PIPELINE_MODEL"]


def test_collectives_of_the_grid(layouts):
    ranks = read_ranks(layouts / "initial_tp2_pp2_dp2")
    assert len(ranks) == 8
    for _, notes in ranks:
        assert notes["gathered"] == [{"rank": rank, "text": "é" * rank} for rank in range(8)]
        assert notes["any"] == [False, True]
        assert notes["data_sum"] == 3.0


@pytest.mark.parametrize("layout", ["tp2_pp2_dp2", "pp3", "pp3_v2"])
def test_warming_up_meets_every_group_and_every_neighbour_once(layouts, layout):
    expected = {
        "tp2_pp2_dp2": [[1]] * 4 + [[0]] * 4,
        "pp3": [[1], [2, 0], [1]],
        "pp3_v2": [[1, 2], [2, 0], [0, 1]],  # a ring: packs go around it
    }
    ranks = read_ranks(layouts / f"warm_up_{layout}")
    assert [notes["sent"] for _, notes in ranks] == expected[layout]
    for _, notes in ranks:
        met = [name.replace("_PARALLEL", "").replace("_GROUP", "") for name in notes["groups"]]
        assert met == [*GROUPS, "default_pg"]
        assert 0 < notes["took"] < 30


@pytest.mark.parametrize("case", ["training_single", "deterministic_tp2_cp2_pp2"])
def test_the_deterministic_mode_is_on_while_asked_for(layouts, case):
    for _, notes in read_ranks(layouts / case):
        assert notes["deterministic"] == case.startswith("deterministic")
        assert not notes["deterministic_after"]


def test_a_rank_that_nobody_joins_says_so(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    sentence = r"rank 0 did not meet the other 1 processes \(parallel.start_timeout_s=1\): .* 1/2 clients joined"
    with pytest.raises(TimeoutError, match=sentence):
        Grid(ParallelDims(data=2, start_timeout_s=1.0))
