"""The processes of a run: this one's place among them, its device and its process groups."""

import gc
import json
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from torch import Tensor

from parallel.cpu_shim import run_megatron_on_cpu
from parallel.dims import ParallelDims
from parallel.environment import prepared_process
from parallel.launch import Launch


class Grid:
    """The rank grid of a run, its groups and this process's place in it.

    Data ranks read different packs; context ranks share the tokens of one. Both have the same weights: together they
    are the replicas, which ZeRO cuts its state over and whose gradients are summed.
    One process without a launcher is a grid like any other. Use as a context manager, or call `close`.
    """

    def __init__(self, dims: ParallelDims, *, hang_folder: Path | None = None) -> None:
        """Join the run; raises ValueError for dims that the number of processes does not allow, before any group.

        A default process group that exists already is used and left standing. What is known of a collective that not
        every rank comes to is left in `hang_folder`.

        Raises:
            TimeoutError: the other processes did not come.
        """
        self._owns_world = not dist.is_initialized()
        if self._owns_world:
            launch = Launch.from_environment()
        else:
            launch = Launch.in_world(dist.get_rank(), dist.get_world_size())
        self.dims = dims.resolve(launch.world_size)
        self.rank, self.world_size = launch.rank, launch.world_size
        self.hang_folder = hang_folder
        self._process = ExitStack()
        cuda = torch.cuda.is_available()
        self._process.enter_context(prepared_process(launch, self.dims, cuda=cuda, hang_folder=hang_folder))
        self.device = _choose_device(launch.local_rank)
        self.limit = "start_timeout_s"
        """Which of the dims' timeouts collectives have now."""
        if self._owns_world:
            _join_world(launch, self.device, self.dims.start_timeout_s)
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=self.dims.tensor,
            pipeline_model_parallel_size=self.dims.pipeline,
            virtual_pipeline_model_parallel_size=_more_than_one(self.dims.virtual_pipeline),
            context_parallel_size=self.dims.context,
            order="tp-cp-ep-dp-pp",
            distributed_timeout_minutes=self.dims.start_timeout_s / 60,
            create_gloo_process_groups=False,
        )
        self.tensor_group = parallel_state.get_tensor_model_parallel_group()
        self.pipeline_group = parallel_state.get_pipeline_model_parallel_group()
        self.context_group = parallel_state.get_context_parallel_group()
        self.data_group = parallel_state.get_data_parallel_group()
        self.replica_group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        self.model_group = parallel_state.get_model_parallel_group()
        self.pack_group = parallel_state.get_tensor_and_context_parallel_group()
        """Ranks of one stage that work on the same packs."""
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

    @property
    def is_first_of_packs(self) -> bool:
        """Whether it is this rank, of those of its stage with the same packs, that reads them."""
        return self.pack_group.rank() == 0

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

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, as a new tensor on this rank's device."""
        total = tensor.detach().to(self.device, copy=True)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def hand_on(self, memory: Tensor) -> None:
        """Overwrite `memory` with that of the first of the ranks with the same packs; all bring as many bytes."""
        passed = memory.to(self.device)
        dist.broadcast(passed, src=dist.get_global_rank(self.pack_group, 0), group=self.pack_group)
        if passed is not memory:
            memory.copy_(passed)

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

    def warm_up(self) -> float:
        """Have every group and every pair of neighbouring stages meet once; returns the seconds that took.

        NCCL connects ranks when they first talk: the first step would be timed with that in it.
        """
        started = time.perf_counter()
        # One kind of group after the other: no rank is in two of one kind, so none waits for a rank that waits for it.
        for group in (
            self.tensor_group,
            self.context_group,
            self.data_group,
            self.replica_group,
            self.model_group,
            self.pack_group,
            self.pipeline_group,
        ):
            dist.all_reduce(torch.zeros(1, device=self.device), group=group)
        if self.pipeline_size > 1:
            self._meet_neighbours()
        self.barrier()
        return time.perf_counter() - started

    def _meet_neighbours(self) -> None:
        """One message to the next stage and one to the one before, by the ways that Megatron's schedules take."""
        config = ModelParallelConfig(pipeline_dtype=torch.float32, batch_p2p_comm=False)
        link = P2PCommunicator(self.pipeline_group, config)
        is_ring = self.dims.virtual_pipeline > 1
        has_next, has_previous = is_ring or not self.is_last_stage, is_ring or not self.is_first_stage
        message = torch.zeros(1, device=self.device)
        link.send_forward_recv_forward(message if has_next else None, recv_prev=has_previous, tensor_shape=(1,))
        link.send_backward_recv_backward(message if has_previous else None, recv_next=has_next, tensor_shape=(1,))

    def started(self) -> None:
        """From now on collectives have `timeout_s`; collective at its first call, after that it does nothing.

        Gloo's messages between stages keep `start_timeout_s`.
        """
        if self.limit != "timeout_s":
            self.limit = "timeout_s"
            parallel_state.update_pg_timeout(timedelta(seconds=self.dims.timeout_s))

    def close(self) -> None:
        """Destroy every process group; the engine goes first."""
        # DeepSpeed's engine keeps groups, with their threads and sockets, in reference cycles.
        gc.collect()
        # In the order of their making, the same on every rank.
        groups = list(dict.fromkeys(filter(None, parallel_state._global_process_group_list or [])))
        parallel_state.destroy_model_parallel()
        for group in groups:
            dist.destroy_process_group(group)
        if self._owns_world:
            dist.destroy_process_group()
        self._process.close()

    def __enter__(self) -> "Grid":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the peers may be gone, and destroying their groups would wait for them.
        if error is None:
            self.close()
        self._process.close()


def _more_than_one(size: int) -> int | None:
    return size if size > 1 else None


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


def _join_world(launch: Launch, device: torch.device, timeout_s: float) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"rank": launch.rank, "world_size": launch.world_size}
    if launch.world_size == 1:
        # No launcher, no port: the only process meets itself in memory.
        options["store"] = dist.HashStore()
    if device.type == "cuda":
        options["device_id"] = device
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s), **options)
    except dist.DistError as error:
        raise TimeoutError(
            f"rank {launch.rank} did not meet the other {launch.world_size - 1} processes ("
            f"parallel.start_timeout_s={timeout_s:g}): {str(error).splitlines()[0]}; see that all of them were started "
            "and can reach MASTER_ADDR:MASTER_PORT"
        ) from error
