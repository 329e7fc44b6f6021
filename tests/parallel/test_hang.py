"""A collective that not every rank comes to: one sentence, and a file with what this rank knew."""

import json
from types import SimpleNamespace

import pytest
from layout_reference import read_ranks

from parallel.dims import ParallelDims
from parallel.hang import _waiting_in, hangs_told

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"


def test_a_rank_that_does_not_come_is_told_by_the_one_that_waits(layouts):
    (_, waited), (_, absent) = read_ranks(layouts / "hang_dp2")
    file = layouts / "hang_dp2" / "hang" / "waiting_0.json"
    assert waited["error"] == (
        "rank 0 waited 2 s (parallel.timeout_s) for other ranks after step 7, in all_reduce number 2 of "
        f"DATA_PARALLEL_GROUP [0, 1]; what it knew is in {file}, and a rank without such a file is one that never "
        "came: see what it did last (docs/slurm.md)"
    )
    assert 1.9 < waited["waited"] < 30, "as said, not as when the groups were made"
    assert "error" not in absent
    note = json.loads(file.read_text())
    assert (note["rank"], note["where"]) == (0, "after step 7")
    assert any("sum_over_data" in line for line in note["error"]), "where in the code it stood"
    last = note["recorded"][-1]
    assert last["profiling_name"] == "gloo:all_reduce"
    assert note["groups"][last["process_group"][0]] == {"what": "DATA_PARALLEL_GROUP", "ranks": [0, 1]}
    assert [path.name for path in file.parent.iterdir()] == ["waiting_0.json"]


@pytest.fixture
def grid(tmp_path, monkeypatch):
    monkeypatch.setattr("parallel.hang._dump_fr_trace_json", lambda: "{}")
    return SimpleNamespace(rank=3, dims=ParallelDims(), limit="start_timeout_s", hang_folder=tmp_path / "hang")


def told(grid, error):
    with pytest.raises(Exception) as raised, hangs_told(grid, lambda: "after step 0"):
        raise error
    return raised.value


def test_a_rank_that_is_gone_is_told_from_one_that_is_late(grid):
    error = told(grid, RuntimeError(f"{GLOO}pair.cc:553] Connection closed by peer [::1]:47847. This is typically"))
    assert isinstance(error, ConnectionError)
    assert str(error).startswith(
        "rank 3 lost another rank after step 0, in its first collective (Connection closed by peer [::1]:47847); "
        f"what that one said last tells the cause, and what it knew is in {grid.hang_folder}/waiting_3.json"
    )


def test_the_limit_is_the_one_of_the_failed_wait(grid):
    late = "unbound_buffer.cc:78] Timed out waiting {}ms for recv operation to complete"
    assert "waited 1800 s (parallel.start_timeout_s)" in str(told(grid, RuntimeError(GLOO + late.format(1_800_000))))
    assert "waited 600 s (parallel.timeout_s)" in str(told(grid, RuntimeError(GLOO + late.format(600_000))))
    assert "waited 1800 s (parallel.start_timeout_s)" in str(told(grid, RuntimeError(f"{GLOO}x] Socket Timeout")))


def test_errors_of_other_kinds_are_left_alone(grid):
    ours = RuntimeError("shapes do not fit")
    assert told(grid, ours) is ours
    assert not grid.hang_folder.exists()


def test_a_note_that_cannot_be_written_does_not_hide_the_hang(grid):
    grid.hang_folder.write_text("a file")
    error = told(grid, RuntimeError(f"{GLOO}x] Timed out waiting 5ms"))
    assert isinstance(error, TimeoutError)
    assert "could not be written" in str(error)


def test_the_first_collective_that_is_not_over_is_the_one_it_waits_in():
    def entry(number, state, *, retired=False):
        group = {"process_group": ["4", "TENSOR_MODEL_PARALLEL_GROUP"], "profiling_name": "nccl:all_gather"}
        return {"collective_seq_id": number, "state": state, "retired": retired, **group}

    groups = {"4": {"what": "TENSOR_MODEL_PARALLEL_GROUP", "ranks": [2, 3]}}
    queued = [entry(6, "completed"), entry(7, "started"), entry(8, "scheduled")]
    assert _waiting_in(queued, groups, None) == "all_gather number 7 of TENSOR_MODEL_PARALLEL_GROUP [2, 3]"
    over = [entry(6, "scheduled", retired=True), entry(7, "scheduled", retired=True)]
    assert _waiting_in(over, groups, None).startswith("all_gather number 7"), "Gloo retires what failed too"
    assert _waiting_in([], {}, None) == "its first collective"
