"""The check of the scales that go with an FP8 KV pool, for all kernels that use one."""

from __future__ import annotations

from torch import Tensor, float8_e4m3fn, float32


def check_kv_scale(kv: Tensor, kv_scale: Tensor | None) -> None:
    """`kv_scale` is float32 [2, kv_heads] beside the layer's float8_e4m3fn `kv`, whose dimension 2
    is its heads, and None beside any other. Raises ValueError.
    """
    if (kv.dtype == float8_e4m3fn) != (kv_scale is not None):
        raise ValueError(f"a kv_scale goes with float8_e4m3fn KV and no other; kv is {kv.dtype}")
    if kv_scale is not None and (
        kv_scale.shape != (2, kv.shape[2])
        or kv_scale.dtype != float32
        or kv_scale.device != kv.device
        or not kv_scale.is_contiguous()
    ):
        raise ValueError(
            f"kv_scale must be contiguous float32 [2, {kv.shape[2]}] on {kv.device}, got"
            f" {kv_scale.dtype} {tuple(kv_scale.shape)} on {kv_scale.device}"
        )
