"""Memory is the largest over ranks, and a node is told of once, however many ranks it has."""

import os
from pathlib import Path

import torch

from trainer.usage import memory_row, node_row, peak_tflops, usage

CPU = torch.device("cpu")


def test_what_is_told_is_what_the_system_says():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    after = usage(CPU)
    resident = pages * os.sysconf("SC_PAGE_SIZE") / 1e9
    assert max(0.2, 0.99 * resident) < after["host_gb"] < resident + 64, "the largest it has been, in GB"
    assert 0 < after["memory_used"] < 1
    assert after["load"] >= 0
    assert "device_gb" not in after
    assert peak_tflops(CPU) is None


def test_known_devices_have_their_peak(monkeypatch):
    names = {"NVIDIA H200": 989.0, "NVIDIA H100 PCIe": 756.0, "NVIDIA H100 80GB HBM3": 989.0}
    names |= {"NVIDIA A100-SXM4-80GB": 312.0, "NVIDIA A10G": 125.0, "NVIDIA L40S": 362.0, "NVIDIA GeForce GT 710": None}
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_tflops(torch.device("cuda", 0)) == peak, name


def test_rows_of_ranks_and_nodes():
    ranks = [
        {"host": "n0", "host_gb": 1.0, "load": 0.5, "memory_used": 0.25, "device_gb": 40.0},
        {"host": "n0", "host_gb": 3.0, "load": 0.9, "memory_used": 0.35, "device_gb": 70.0},
        {"host": "n1", "host_gb": 2.0, "load": 0.1, "memory_used": 0.15, "device_gb": 60.0},
    ]
    assert memory_row(ranks) == {"memory/host_gb": 3.0, "memory/device_gb": 70.0}
    assert node_row(ranks) == {
        "node/n0/load": 0.5,
        "node/n0/memory_used": 0.25,
        "node/n1/load": 0.1,
        "node/n1/memory_used": 0.15,
    }
