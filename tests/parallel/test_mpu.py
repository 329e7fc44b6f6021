"""The adapter DeepSpeed sees: what it must say, and what it must not have."""

from types import SimpleNamespace

import pytest

from parallel.mpu import MpuAdapter


class Group:
    def __init__(self, size):
        self._size = size

    def size(self):
        return self._size


@pytest.fixture
def adapter():
    return MpuAdapter(
        SimpleNamespace(
            tensor_rank=1, tensor_size=2, tensor_group="tensor",
            pipeline_rank=2, pipeline_size=3, pipeline_group="pipeline",
            replica_rank=3, replica_size=4, replica_group="replicas",
            model_group=Group(6),
        )
    )  # fmt: skip


def test_ranks_and_sizes(adapter):
    assert adapter.get_model_parallel_rank() == adapter.get_tensor_model_parallel_rank() == 1
    assert adapter.get_model_parallel_world_size() == 6
    assert adapter.get_tensor_model_parallel_world_size() == 2
    assert (adapter.get_pipeline_model_parallel_rank(), adapter.get_pipeline_model_parallel_world_size()) == (2, 3)
    assert (adapter.get_data_parallel_rank(), adapter.get_data_parallel_world_size()) == (3, 4)


def test_groups(adapter):
    assert adapter.get_tensor_model_parallel_group() == "tensor"
    assert adapter.get_pipeline_model_parallel_group() == "pipeline"
    assert adapter.get_data_parallel_group() == "replicas"
    assert adapter.get_model_parallel_group().size() == 6


def test_nothing_that_switches_model_parallelism_off(adapter):
    assert not hasattr(adapter, "initialize_sequence_parallel")
