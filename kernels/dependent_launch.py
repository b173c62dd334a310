# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Programmatic dependent launch: a kernel starts while the one before it ends.

On Hopper and later a kernel may be launched early: its programs read what no running kernel writes
(weights, the batch's plan), then wait until the kernel before is over and its results are seen.
At batch 1 a decode step is some 200 short kernels, and the gaps between them were a tenth of it.

What a kernel may read before `wait_for_earlier`: constants, and what the kernels before its
predecessor wrote (a predecessor lets it start only after it has itself waited for those).
Writing anything before is wrong: the predecessor may still read there.

A kernel that needs nothing of its predecessor's (BESIDE) may run beside it and wait at its end:
what it reads was written by those before, which are over. Whoever comes next waits for both.
"""

from functools import cache

import torch
import triton
import triton.language as tl


@cache
def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Keywords for the launch of a kernel that has a DEPENDENT parameter."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return {"DEPENDENT": False}
    return {"DEPENDENT": True, "launch_pdl": True}


@triton.jit
def wait_for_earlier(DEPENDENT: tl.constexpr):
    """Return once all earlier kernels are over; from here on the next one may start."""
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch(b_pointers, DEPENDENT: tl.constexpr):
    """Ask for the cache lines at the pointers to be brought to the second-level cache."""
    if DEPENDENT:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [b_pointers.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
