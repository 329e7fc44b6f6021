"""Which device a command works on."""

import torch


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. ValueError for a device that this machine does not have."""
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name} is not known here: take auto, cpu, cuda or cuda:N")
    gpus = torch.cuda.device_count() if has_gpu else 0
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f"device={name}, but this machine has {gpus} GPUs that PyTorch can use: take auto or cpu")
    return device
