"""Megatron-core on a machine without GPUs: the few places where it says "cuda" outright.

`megatron.core` allocates receive buffers on `torch.cuda.current_device()` (`p2p_communication.py`, `mappings.py`,
`layers.py`), synchronises CUDA after sending shapes, and counts tokens on the literal device "cuda"
(`schedules.py`). Nothing else of it needs CUDA under gloo.
"""

from types import ModuleType
from typing import Any

import torch


class _TorchOnCpu(ModuleType):
    """`torch` for one module, except that `zeros(device="cuda")` makes a CPU tensor."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.zeros(*size, device="cpu" if device == "cuda" else device, **options)


def run_megatron_on_cpu() -> None:
    """Send what Megatron-core would put on "cuda" to the CPU, in this process and for good.

    Raises:
        RuntimeError: CUDA is available, where this would silently train on the CPU.
    """
    if torch.cuda.is_available():
        raise RuntimeError("parallel.cpu_shim must not be used where CUDA is available")
    from megatron.core.pipeline_parallel import schedules

    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda device=None: None
    schedules.torch = _TorchOnCpu("torch")
