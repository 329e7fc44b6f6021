"""What a run sets for its whole process, and takes back: the environment that engines read, torch's deterministic mode.

The names are those of torch 2.9 to 2.13 (`FlightRecorder.hpp`, `ProcessGroupNCCL.hpp`, `AllocatorConfig.h`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from parallel.dims import ParallelDims
from parallel.launch import Launch

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COLLECTIVES_RECORDED = 2000
NCCL_DUMP = "nccl_rank_"
"""Begins the names of NCCL's dumps, the rank ends them: `torchfrtrace` finds them by that."""


@contextmanager
def prepared_process(launch: Launch, dims: ParallelDims, *, cuda: bool, hang_folder: Path | None) -> Iterator[None]:
    """Inside, the process is set up for a run; to be entered before CUDA starts. What the user set stays."""
    defaults = engine_variables(launch, dims, cuda=cuda, hang_folder=hang_folder)
    ours = {name: value for name, value in defaults.items() if name not in os.environ}
    if cuda and hang_folder is not None:
        hang_folder.mkdir(parents=True, exist_ok=True)  # NCCL's watchdog writes there, and makes no folders
    os.environ.update(ours)
    try:
        with deterministic_algorithms() if dims.deterministic else nullcontext():
            yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def engine_variables(
    launch: Launch, dims: ParallelDims, *, cuda: bool, hang_folder: Path | None = None
) -> dict[str, str]:
    """What torch, NCCL, Megatron-core and DeepSpeed should find in the environment where the user has not said else."""
    wanted = {
        "LOCAL_RANK": str(launch.local_rank),
        # The flight recorder: the last collectives of this rank, under NCCL and Gloo.
        "TORCH_FR_BUFFER_SIZE": str(COLLECTIVES_RECORDED),
    }
    if dims.tensor > 1:
        # Megatron counts on it to start a gather before the matmul that hides it, and warns where it is unset.
        wanted["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    if not cuda:
        if os.environ.get("MASTER_ADDR", LOOPBACK[0]) in LOOPBACK:
            wanted["GLOO_SOCKET_IFNAME"] = "lo"
        return wanted
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name, which CUDA's allocator reads first
        wanted["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    wanted |= {
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        # End the process without aborting communicators first: that could hang too, before anything is dumped.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(round(dims.heartbeat_timeout_s)),
    }
    if hang_folder is not None:
        wanted["TORCH_FR_DUMP_TEMP_FILE"] = str(hang_folder.absolute() / NCCL_DUMP)
    if dims.deterministic:
        # cuBLAS: one workspace of fixed size. NCCL: sums in the order of the ring, not inside switches.
        wanted |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}
    return wanted


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Inside, torch takes an algorithm that gives the same bits each time, and raises where it has none."""
    was, only_warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn = torch.backends.cudnn
    chose, was_cudnn = cudnn.benchmark, cudnn.deterministic
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=only_warned)
        cudnn.benchmark, cudnn.deterministic = chose, was_cudnn
