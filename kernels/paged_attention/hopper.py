"""Launches Hopper's own extend kernel: which GPUs and problems it is for, and its fixed sizes.

It takes what is served most: 16-bit queries and pools, heads of 64 or 128, no window and no cap. On
an H100 it does 631 TFLOP/s at 8k causal tokens where `extend_kernel`, which has the rest, does 357.
"""

from functools import cache
from typing import Final

import torch
from torch import Tensor

from baton.kernels.paged_attention.problem import Problem

# query rows (tokens x group) and keys of a tile; two tiles of keys and of values in flight
_BLOCK_M: Final = 128
_BLOCK_N: Final = 128
_STAGES: Final = 2
# a box of the copy engine: a row of 128 bytes, swizzled over at least 8 rows
_BOX_COLUMNS: Final = 64
_MIN_BOX_ROWS: Final = 8
# what the copy engine can address
_ALIGNMENT: Final = 16
_MAX_STRIDE: Final = 1 << 40


@cache
def is_hopper(device: torch.device) -> bool:
    """Whether the device has warpgroup matrix products and a copy engine: compute capability 9."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device)[0] == 9


@cache
def multiprocessors(device: torch.device) -> int:
    """How many programs of this kernel the device holds at a time."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def fits_hopper(problem: Problem) -> bool:
    """Whether the kernel can do it: by types and shapes alone."""
    kv = problem.kv
    strides = [stride * kv.element_size() for stride in kv.stride()[:4]]
    return (
        kv.dtype in (torch.bfloat16, torch.float16)
        and kv.dtype == problem.q.dtype
        and problem.sliding_window is None
        and problem.soft_cap is None
        and problem.scale > 0
        and kv.shape[4] in (64, 128)
        and kv.shape[3] % _MIN_BOX_ROWS == 0
        and problem.q.shape[1] // kv.shape[2] <= _BLOCK_M
        and kv.data_ptr() % _ALIGNMENT == 0
        and all(stride % _ALIGNMENT == 0 and stride < _MAX_STRIDE for stride in strides)
    )


def extend_hopper(problem: Problem, out: Tensor, *, programs: int) -> None:
    """Write the rows of several tokens into the contiguous `out`, with at most so many programs."""
    # imported where it runs: Triton's interpreter has no Gluon
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from baton.kernels.paged_attention.hopper_kernel import extend_hopper_kernel

    q, kv = problem.q, problem.kv
    num_kv_heads, block_size, head_dim = kv.shape[2:]
    group, num_rows = q.shape[1] // num_kv_heads, problem.context_lens.shape[0]
    box = min(block_size & -block_size, _BLOCK_N)
    boxes = TensorDescriptor(
        base=kv,
        shape=list(kv.shape),
        strides=list(kv.stride()),
        block_shape=[1, 1, 1, box, _BOX_COLUMNS],
        layout=NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=5),
    )
    # an upper bound on the tiles of any split of the tokens into rows: no need to know the rows
    num_items = num_kv_heads * (q.shape[0] // (_BLOCK_M // group) + num_rows)
    extend_hopper_kernel[(min(num_items, programs),)](
        *(boxes, q, out, problem.query_start, problem.context_lens, problem.block_tables),
        *(num_rows, num_items, q.stride(0), q.stride(1), problem.block_tables.stride(0)),
        problem.scale,
        GROUP=group,
        KV_HEADS=num_kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        BN=_BLOCK_N,
        BOX=box,
        STAGES=_STAGES,
        num_warps=4,
        # 12 warps of 168: all the registers of a multiprocessor
        maxnreg=168,
    )
