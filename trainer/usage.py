"""What a rank takes of its machine, and how full that is."""

import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import torch

_GB = 1e9
_BF16_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "H800": 989.0,
    "L40S": 362.0,
    "L40": 181.0,
    "A40": 150.0,
    "A10": 125.0,
    "L4": 121.0,
    "V100": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "MI300X": 1307.0,
    "MI250X": 191.5,
}
"""Dense bf16 (V100: fp16) TFLOP/s of a device, by a part of its name, from the vendors' data sheets; first match."""


def peak_tflops(device: torch.device) -> float | None:
    """What a device could do at most in bf16; None on a CPU and where its name is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _BF16_TFLOPS.items() if part in name), None)


def usage(device: torch.device) -> dict[str, Any]:
    """Memory of this process since the last look, GB, and of its machine; plain values, to be gathered."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    told: dict[str, Any] = {"host": socket.gethostname(), "host_gb": peak / _GB, **_machine()}
    if device.type == "cuda":
        told["device_gb"] = torch.cuda.max_memory_allocated(device) / _GB
        told["device_reserved_gb"] = torch.cuda.max_memory_reserved(device) / _GB
        torch.cuda.reset_peak_memory_stats(device)
    return told


def _machine() -> dict[str, float]:
    """Load for each core and the share of memory in use, where the system says."""
    told = {"load": os.getloadavg()[0] / (os.cpu_count() or 1)}
    if (path := Path("/proc/meminfo")).exists():
        lines = dict(line.split(":") for line in path.read_text(encoding="utf-8").splitlines())
        free, total = (int(lines[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
        told["memory_used"] = 1 - free / total
    return told


def memory_row(told: list[dict[str, Any]]) -> dict[str, float]:
    """The largest over ranks, GB: of the process on its host, and on its device where it has one."""
    names = [name for name in ("host_gb", "device_gb", "device_reserved_gb") if name in told[0]]
    return {f"memory/{name}": round(max(one[name] for one in told), 3) for name in names}


def node_row(told: list[dict[str, Any]]) -> dict[str, float]:
    """Load and memory of each node, as the first of its ranks sees them."""
    nodes = {one["host"]: one for one in reversed(told)}
    row = {}
    for host in sorted(nodes):
        for name in ("load", "memory_used"):
            if name in nodes[host]:
                row[f"node/{host}/{name}"] = round(nodes[host][name], 3)
    return row
