"""What a run sets for its process, what it leaves to the user, and that all of it is taken back."""

import mmap
import os
from pathlib import Path

import pytest
import torch

from parallel.dims import ParallelDims
from parallel.environment import engine_variables, prepared_process
from parallel.launch import Launch

LAUNCH = Launch(rank=5, world_size=8, local_rank=1)
TORCH = Path(torch.__file__).parent


@pytest.fixture(autouse=True)
def shell(monkeypatch):
    for name in [name for name in os.environ if "ALLOC_CONF" in name or name.startswith(("TORCH_", "NCCL_", "GLOO_"))]:
        monkeypatch.delenv(name)
    for name in ("LOCAL_RANK", "MASTER_ADDR", "CUDA_DEVICE_MAX_CONNECTIONS", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_on_a_gpu_memory_grows_in_place_and_a_hang_is_dumped(tmp_path):
    dims = ParallelDims(tensor=2, heartbeat_timeout_s=90.0)
    assert engine_variables(LAUNCH, dims, cuda=True, hang_folder=tmp_path) == {
        "LOCAL_RANK": "1",
        "TORCH_FR_BUFFER_SIZE": "2000",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "90",
        "TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/nccl_rank_",
    }
    deterministic = engine_variables(LAUNCH, ParallelDims(deterministic=True), cuda=True)
    assert (deterministic["CUBLAS_WORKSPACE_CONFIG"], deterministic["NCCL_ALGO"]) == (":4096:8", "Ring")


def test_on_a_cpu_gloo_stays_on_the_machine_unless_there_are_others(shell):
    wanted = {"LOCAL_RANK": "1", "TORCH_FR_BUFFER_SIZE": "2000"}
    assert engine_variables(LAUNCH, ParallelDims(), cuda=False) == wanted | {"GLOO_SOCKET_IFNAME": "lo"}
    shell.setenv("MASTER_ADDR", "node7")
    assert engine_variables(LAUNCH, ParallelDims(), cuda=False) == wanted


def test_what_the_user_set_stays_and_the_rest_is_taken_back(shell, tmp_path):
    shell.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    shell.setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    before = dict(os.environ)
    with prepared_process(LAUNCH, ParallelDims(tensor=2), cuda=True, hang_folder=tmp_path / "run" / "hang"):
        assert "PYTORCH_ALLOC_CONF" not in os.environ, "it would go before what the user said under the older name"
        assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "0"
        assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
        assert (tmp_path / "run" / "hang").is_dir(), "NCCL's watchdog makes no folders"
    assert dict(os.environ) == before


def test_deterministic_algorithms_are_on_inside_only():
    cudnn = torch.backends.cudnn
    states = []
    with prepared_process(LAUNCH, ParallelDims(deterministic=True), cuda=False, hang_folder=None):
        states.append((torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark))
    states.append((torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark))
    assert states == [(True, True, False), (False, False, False)]


def test_torch_knows_the_names():
    """A version that renames one would no longer dump, without a word."""
    names = ("TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE", "PYTORCH_ALLOC_CONF")
    found = set()
    for library in (TORCH / "lib").glob("lib*.so"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            found |= {name for name in names if text.find(name.encode()) >= 0}
    assert found == {*names}
    header = (TORCH / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp").read_text()
    used = engine_variables(LAUNCH, ParallelDims(), cuda=True)
    assert [name for name in used if name.startswith("TORCH_NCCL") and f'"{name}"' not in header] == []
