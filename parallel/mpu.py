"""What DeepSpeed asks of a Megatron-style "mpu"."""

from torch.distributed import ProcessGroup

from parallel.runtime import Grid


class MpuAdapter:
    """A `Grid` under the names DeepSpeed calls.

    "Model parallel" is tensor x pipeline where a group is meant, and the tensor rank where a rank is: DeepSpeed counts
    replicated parameters on model-parallel rank 0 only, and every stage has replicated parameters of its own.
    "Data parallel" ranks are all that hold the same weights, context ranks included.
    There must be no `initialize_sequence_parallel`: DeepSpeed takes its presence to mean that nothing is model
    parallel, and leaves the other ranks out of the gradient norm.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def get_model_parallel_rank(self) -> int:
        return self._grid.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        return self._grid.model_group.size()

    def get_model_parallel_group(self) -> ProcessGroup:
        return self._grid.model_group

    def get_data_parallel_rank(self) -> int:
        return self._grid.replica_rank

    def get_data_parallel_world_size(self) -> int:
        return self._grid.replica_size

    def get_data_parallel_group(self) -> ProcessGroup:
        return self._grid.replica_group

    def get_tensor_model_parallel_rank(self) -> int:
        return self._grid.tensor_rank

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._grid.tensor_size

    def get_tensor_model_parallel_group(self) -> ProcessGroup:
        return self._grid.tensor_group

    def get_pipeline_model_parallel_rank(self) -> int:
        return self._grid.pipeline_rank

    def get_pipeline_model_parallel_world_size(self) -> int:
        return self._grid.pipeline_size

    def get_pipeline_model_parallel_group(self) -> ProcessGroup:
        return self._grid.pipeline_group
