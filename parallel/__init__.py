"""Where it runs: layout, process groups, Megatron-core layers and schedules, DeepSpeed ZeRO."""

import logging
import os
import warnings

import torch

# Megatron-core complains of optional CUDA packages that nothing here uses, and calls torch by older names.
for _message, _category in (
    ("Transformer Engine and Apex are not", UserWarning),
    ("Apex is not installed", UserWarning),
    ("full scope is deprecated", UserWarning),
    (r"absl\.logging is not installed", UserWarning),  # from megatron-core 0.19
    (r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated", FutureWarning),
):
    warnings.filterwarnings("ignore", message=_message, category=_category)
for _logger in ("megatron", "DeepSpeed"):
    logging.getLogger(_logger).setLevel(logging.WARNING)
if not torch.cuda.is_available():
    # DeepSpeed, on import, would find the same with a warning.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # megatron-core 0.19 imports torch's CUDA compiler, which warns where `nvcc` is installed and no GPU is.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
