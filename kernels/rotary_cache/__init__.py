"""Rotary embedding of new queries and keys, fused with the write to the paged pool."""

from torch import Tensor, float8_e4m3fn, int32, int64

from baton.kernels.backend import Backend, runs_triton
from baton.kernels.kv_scale import check_kv_scale
from baton.kernels.rotary_cache.reference import build_cos_sin, rotary_cache_reference

__all__ = ["build_cos_sin", "rotary_cache"]


def rotary_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    cos_sin: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    kv_scale: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Rotate q and k by position, write k and v into the pool, and return the rotated q.

    Rotation pairs dimension i with i + rot_dim / 2 (the Llama, Qwen, neox convention); dimensions
    from rot_dim on pass through. With norms, each head is RMS-normalised before it is rotated.

    Args:
        q: [num_tokens, num_q_heads, head_dim], last stride 1; may be a view of a merged qkv.
        k: [num_tokens, num_kv_heads, head_dim], likewise; not changed.
        v: [num_tokens, num_kv_heads, head_dim], likewise; not changed.
        kv: [num_blocks, 2, num_kv_heads, block_size, head_dim], last stride 1; written in place.
            dtype of k, or float8_e4m3fn with a kv_scale.
        positions: int32 or int64 [num_tokens], each below max_pos.
        slot_mapping: int64 [num_tokens], `block_id * block_size + offset`; negative skips the
            write. Two tokens never share a slot.
        cos_sin: [max_pos, rot_dim], contiguous; cosines in the first half of a line, sines in the
            second. float32 is best; rot_dim is even and at most head_dim.
        q_norm: [head_dim] weight of the query norm, contiguous, or None.
        k_norm: [head_dim] weight of the key norm, contiguous, or None.
        eps: of both norms.
        kv_scale: float32 [2, num_kv_heads], contiguous: keys and values of each head are divided by
            these, and kept within what float8_e4m3fn holds.
        backend: forces an implementation; "auto" goes by the device of q.

    Returns:
        [num_tokens, num_q_heads, head_dim], contiguous, dtype of q.

    Raises:
        ValueError: a shape, dtype or stride does not fit.
    """
    _check_heads(q, k, v, kv)
    _check_tables(q, positions, slot_mapping, cos_sin)
    for weight in (q_norm, k_norm):
        if weight is not None and (weight.shape != q.shape[2:] or weight.stride(0) != 1):
            raise ValueError(f"norm weight {tuple(weight.shape)} is not [{q.shape[2]}], contiguous")
    check_kv_scale(kv, kv_scale)
    if runs_triton(q, backend):
        from baton.kernels.rotary_cache.launch import rotary_cache_triton as implementation
    else:
        implementation = rotary_cache_reference
    return implementation(
        *(q, k, v, kv, positions, slot_mapping, cos_sin),
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
        kv_scale=kv_scale,
    )


def _check_heads(q: Tensor, k: Tensor, v: Tensor, kv: Tensor) -> None:
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or k.shape[0] != q.shape[0]:
        raise ValueError(
            "expected q, k, v [tokens, heads, head_dim], got"
            f" {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if kv.dim() != 5 or kv.shape[1:3] != (2, k.shape[1]) or kv.shape[4] != k.shape[2]:
        raise ValueError(f"kv {tuple(kv.shape)} does not fit k {tuple(k.shape)}")
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"head_dim of q is {q.shape[2]} but of k {k.shape[2]}")
    if q.dtype != k.dtype or k.dtype != v.dtype or kv.dtype not in (k.dtype, float8_e4m3fn):
        raise ValueError(
            f"q, k, v, kv must share a dtype: {q.dtype} {k.dtype} {v.dtype} {kv.dtype}"
        )
    if q.device != k.device or k.device != v.device or k.device != kv.device:
        raise ValueError("q, k, v and kv must be on one device")
    if q.stride(2) != 1 or k.stride(2) != 1 or v.stride(2) != 1 or kv.stride(4) != 1:
        raise ValueError("head_dim of q, k, v and kv must be contiguous")


def _check_tables(q: Tensor, positions: Tensor, slot_mapping: Tensor, cos_sin: Tensor) -> None:
    if positions.shape != q.shape[:1] or positions.dtype not in (int32, int64):
        raise ValueError(
            f"positions must be int [{q.shape[0]}], got {positions.dtype} {tuple(positions.shape)}"
        )
    if slot_mapping.shape != q.shape[:1] or slot_mapping.dtype != int64:
        raise ValueError(
            f"slot_mapping must be int64 [{q.shape[0]}], got {slot_mapping.dtype}"
            f" {tuple(slot_mapping.shape)}"
        )
    if positions.device != q.device or slot_mapping.device != q.device:
        raise ValueError("positions and slot_mapping must be on the device of q")
    rot_dim = cos_sin.shape[-1]
    if cos_sin.dim() != 2 or rot_dim % 2 != 0 or rot_dim > q.shape[2]:
        raise ValueError(f"cos_sin {tuple(cos_sin.shape)} must be [max_pos, even <= {q.shape[2]}]")
    if not cos_sin.is_contiguous() or cos_sin.device != q.device:
        raise ValueError("cos_sin must be contiguous and on the device of q")
