"""The shim is for machines without a GPU only."""

import pytest
import torch

from parallel.cpu_shim import run_megatron_on_cpu


def test_refused_where_cuda_is_available(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="must not be used where CUDA is available"):
        run_megatron_on_cpu()
