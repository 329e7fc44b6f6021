"""The processes of a run: this one's place among them, its device and its process groups.

The environment is read here and in `launch`, and nowhere else in `parallel`.
"""

import gc
import json
import os
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from parallel.cpu_shim import run_megatron_on_cpu
from parallel.dims import ParallelDims
from parallel.launch import Launch

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Grid:
    """The rank grid of a run, its groups and this process's place in it.

    Data ranks read different packs; context ranks share the tokens of one. Both have the same weights: together they
    are the replicas, which ZeRO cuts its state over and whose gradients are summed.
    One process without a launcher is a grid like any other. Use as a context manager, or call `close`.
    """

    def __init__(self, dims: ParallelDims) -> None:
        """Join the run; raises ValueError for dims that the number of processes does not allow, before any group.

        A default process group that exists already is used and left standing.
        """
        self._owns_world = not dist.is_initialized()
        launch = _launch_inside_world() if dist.is_initialized() else Launch.from_environment()
        self.dims = dims.resolve(launch.world_size)
        self.rank, self.world_size = launch.rank, launch.world_size
        self.device = _choose_device(launch.local_rank)
        _prepare_environment(launch, self.dims, self.device)
        timeout = timedelta(seconds=self.dims.timeout_s)
        if self._owns_world:
            _join_world(launch, self.device, timeout)
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=self.dims.tensor,
            pipeline_model_parallel_size=self.dims.pipeline,
            virtual_pipeline_model_parallel_size=_more_than_one(self.dims.virtual_pipeline),
            context_parallel_size=self.dims.context,
            order="tp-cp-ep-dp-pp",
            distributed_timeout_minutes=max(1, round(self.dims.timeout_s / 60)),
            create_gloo_process_groups=False,
        )
        self.tensor_group = parallel_state.get_tensor_model_parallel_group()
        self.pipeline_group = parallel_state.get_pipeline_model_parallel_group()
        self.context_group = parallel_state.get_context_parallel_group()
        self.data_group = parallel_state.get_data_parallel_group()
        self.replica_group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        self.model_group = parallel_state.get_model_parallel_group()
        self.tensor_rank, self.tensor_size = self.tensor_group.rank(), self.tensor_group.size()
        self.context_rank, self.context_size = self.context_group.rank(), self.context_group.size()
        self.pipeline_rank, self.pipeline_size = self.pipeline_group.rank(), self.pipeline_group.size()
        self.data_rank, self.data_size = self.data_group.rank(), self.data_group.size()
        self.replica_rank, self.replica_size = self.replica_group.rank(), self.replica_group.size()

    @property
    def is_first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline_size - 1

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        found = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found.item())

    def sum_over_data(self, tensor: Tensor) -> Tensor:
        """Sum over data ranks, as a new tensor where `tensor` was."""
        total = tensor.detach().to(self.device, copy=True)
        if self.data_size > 1:
            dist.all_reduce(total, group=self.data_group)
        return total.to(tensor.device)

    def gather_objects(self, value: Any) -> list[Any]:
        """The `value` of every rank, in rank order; values travel as JSON, so tuples come back as lists."""
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([text.numel()], device=self.device))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        padded[: text.numel()] = text
        texts = [torch.zeros_like(padded) for _ in range(self.world_size)]
        dist.all_gather(texts, padded)
        return [json.loads(bytes(t[: int(n)].tolist())) for t, n in zip(texts, sizes, strict=True)]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.device.type == "cuda":
            dist.barrier(device_ids=[self.device.index])
        else:
            dist.barrier()

    def close(self) -> None:
        """Destroy every process group; the engine goes first."""
        # DeepSpeed's engine keeps groups, with their threads and sockets, in reference cycles.
        gc.collect()
        groups = set(filter(None, parallel_state._global_process_group_list or []))
        parallel_state.destroy_model_parallel()
        for group in groups:
            dist.destroy_process_group(group)
        if self._owns_world:
            dist.destroy_process_group()

    def __enter__(self) -> "Grid":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the peers may be gone, and destroying their groups would wait for them.
        if error is None:
            self.close()


def _more_than_one(size: int) -> int | None:
    return size if size > 1 else None


def _launch_inside_world() -> Launch:
    return Launch(
        rank=dist.get_rank(), world_size=dist.get_world_size(), local_rank=int(os.environ.get("LOCAL_RANK", "0"))
    )


def _choose_device(local_rank: int) -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        run_megatron_on_cpu()
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {local_rank} has no GPU of its own: {torch.cuda.device_count()} are visible; start at most "
            "that many processes on a node."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _prepare_environment(launch: Launch, dims: ParallelDims, device: torch.device) -> None:
    """What the engines read from the environment; values the user set stay."""
    defaults = {"LOCAL_RANK": str(launch.local_rank)}
    if device.type == "cpu" and os.environ.get("MASTER_ADDR", LOOPBACK[0]) in LOOPBACK:
        defaults["GLOO_SOCKET_IFNAME"] = "lo"
    if dims.tensor > 1:
        # Megatron counts on it to start a gather before the matmul that hides it, and warns where it is unset.
        defaults["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _join_world(launch: Launch, device: torch.device, timeout: timedelta) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    device_id = device if device.type == "cuda" else None
    if launch.world_size == 1:
        # No launcher, no port: the only process meets itself in memory.
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout, device_id=device_id
        )
        return
    dist.init_process_group(
        backend, rank=launch.rank, world_size=launch.world_size, timeout=timeout, device_id=device_id
    )
