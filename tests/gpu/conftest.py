"""The kernel tests' fixtures serve the GPU tests too."""

import os

import torch
from tests.kernels.conftest import nan_filled_empty, seeded, triton_device

__all__ = ["nan_filled_empty", "seeded", "triton_device"]

# Where there is no GPU the shared tests run in the interpreter beside their own folder.
collect_ignore = [] if torch.cuda.is_available() else ["test_operators_gpu.py"]
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
