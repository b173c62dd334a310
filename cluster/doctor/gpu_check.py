"""In a process of its own: the driver, each GPU, and a kernel in each type that models have.

`python -m baton.cluster.doctor.gpu_check DEVICE UTILIZATION`, as `engine.device` and
`engine.gpu_memory_utilization` say.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import torch

from baton.cluster.doctor.finding import Finding, ok, problem, warning
from baton.engine.device import DTYPES, MIN_CAPABILITY
from baton.kernels.rms_norm import rms_norm

DRIVER = Path("/proc/driver/nvidia/version")
# Triton's conversions to and from float8_e4m3fn.
FP8_CAPABILITY = (8, 9)
HOPPER = 9


def check_gpus(device: str, utilization: float) -> list[Finding]:
    """One finding for all of the driver, one for each GPU's memory and kernels."""
    driver = driver_version()
    if not torch.cuda.is_available():
        return [_without_gpu(device, driver)]
    count = torch.cuda.device_count()
    version = driver or "of an unknown version"
    found = [
        ok(
            "GPU driver",
            f"{version}, {count} GPU{'s' * (count > 1)}, torch built for CUDA {_cuda()}.",
        )
    ]
    for index in range(count):
        found += [check_memory(index, utilization), check_kernels(index)]
    return found


def driver_version() -> str:
    """The NVIDIA driver's version; empty without one."""
    if not DRIVER.exists():
        return ""
    match = re.search(r"\s(\d+(?:\.\d+)+)\s", DRIVER.read_text())
    return match[1] if match else "of an unknown version"


def _cuda() -> str:
    return str(torch.version.cuda or "none")


def _without_gpu(device: str, driver: str) -> Finding:
    if device == "cpu":
        return ok("GPU", "None is needed: engine.device is cpu.")
    if driver and torch.version.cuda is None:
        return problem(
            "GPU",
            f"There is a driver, {driver}, but this torch was built for the CPU alone.",
            "install torch for CUDA, or set engine.device to cpu.",
        )
    if driver:
        return problem(
            "GPU",
            f"There is a driver, {driver}, but torch for CUDA {_cuda()} can use no GPU.",
            "see whether `nvidia-smi` works, whether CUDA_VISIBLE_DEVICES is empty, and whether "
            f"the driver is new enough for CUDA {_cuda()}.",
        )
    if device != "auto":
        return problem(
            "GPU",
            f"engine.device is {device}, but there is no NVIDIA driver here.",
            "install one, give the container its GPUs, or set engine.device to cpu.",
        )
    return warning(
        "GPU",
        "There is no NVIDIA driver here, so workers run on the CPU, which is for trials.",
        "on a machine with GPUs, install a driver or give the container its GPUs; else nothing.",
    )


def check_memory(index: int, utilization: float) -> Finding:
    """Whether others leave as much of the GPU's memory as an engine takes."""
    free, total = torch.cuda.mem_get_info(index)
    gib = 1 << 30
    found = f"{torch.cuda.get_device_name(index)}, {free / gib:.1f} of {total / gib:.1f} GiB free."
    if free < total * utilization:
        return warning(
            f"GPU {index} memory",
            f"{found} A worker takes {utilization:.0%} of it.",
            "end what else uses it (`nvidia-smi`), or lower engine.gpu_memory_utilization. "
            "If a worker of Baton runs there, nothing is wrong.",
        )
    return ok(f"GPU {index} memory", found)


def check_kernels(index: int) -> Finding:
    """Compiles and runs one kernel in every type."""
    name = f"GPU {index} kernels"
    major, minor = torch.cuda.get_device_capability(index)
    capability = f"Compute capability {major}.{minor}"
    if (major, minor) < MIN_CAPABILITY:
        least = ".".join(map(str, MIN_CAPABILITY))
        fix = "use a newer GPU, or set engine.device to cpu."
        return problem(name, f"{capability}, but the kernels need {least}.", fix)
    try:
        for dtype in DTYPES.values():
            _run_kernel(torch.device("cuda", index), dtype)
    except Exception as error:  # A compiler's, driver's or kernel's: all end this check alike.
        said = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        fix = "install a C compiler (gcc), which Triton needs, and the Triton of this torch."
        return problem(name, f"{capability}. A kernel failed: {said[0].rstrip('.')}.", fix)
    has_fp8 = (major, minor) >= FP8_CAPABILITY
    fp8 = "KV may be fp8_e4m3" if has_fp8 else "KV cannot be fp8_e4m3"
    attention = ", prefill attention for Hopper" if major == HOPPER else ""
    types = ", ".join(DTYPES)
    return ok(name, f"{capability}. A kernel runs in {types}; {fp8}{attention}.")


def _run_kernel(device: torch.device, dtype: torch.dtype) -> None:
    x = torch.ones((4, 128), device=device, dtype=dtype)
    normed = rms_norm(x, x[0].contiguous(), 0.0)
    if not torch.allclose(normed, x, atol=1e-2):
        raise RuntimeError(f"rms_norm of ones in {dtype} is not ones")


if __name__ == "__main__":
    findings = check_gpus(sys.argv[1], float(sys.argv[2]))
    print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
