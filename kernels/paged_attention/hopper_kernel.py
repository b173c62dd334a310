# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, attr-defined"
"""Extend attention for Hopper, as FlashAttention-3 has it (Shah et al. 2024), over paged KV.

One warp fetches keys and values with the copy engine, a box of at most a page at a time, into rings
of tiles; two warpgroups of 64 query rows each multiply. Each warpgroup starts the next tile's
scores and this tile's mix together, and works out the softmax while the tensor cores are at both.
Tiles go from the last keys to the first, so that those a query must not see come first.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from baton.kernels.paged_attention import kernel

LOG2_E: gl.constexpr = gl.constexpr(1.4426950408889634)
# columns of a 128-byte swizzled row
PANEL: gl.constexpr = gl.constexpr(64)
_find_row = gluon.jit(kernel._find_row.fn)
# what Triton 3.6 calls otherwise than later releases
_load_box = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_sync_warps = getattr(gl, "barrier", None) or gl.thread_barrier
_View = gl.shared_memory_descriptor
_view_as = getattr(_View, "reinterpret", None) or _View._reinterpret


@gluon.jit
def _find_item(
    batch, i_round, KV_HEADS: gl.constexpr, BQ: gl.constexpr, BN: gl.constexpr
):  # fmt: skip
    """This program's item of a round: a tile of a row's tokens and a key-value head.

    Longest items come first, and rounds go to and fro over the programs, which evens out their
    sums. The number of tiles is 0 for a decode's row and past the last row's end.
    """
    p_query_start, p_context_lens, num_rows, num_items = batch
    width = gl.num_programs(0)
    place = gl.program_id(0)
    i_item = i_round * width + gl.where(i_round % 2 == 0, place, width - 1 - place)
    i_head = i_item % KV_HEADS
    i_tile = gl.maximum(num_items - 1 - i_item, 0) // KV_HEADS
    i_row = _find_row(p_query_start, num_rows, i_tile, BQ)
    start = gl.load(p_query_start + i_row)
    query_len = gl.load(p_query_start + i_row + 1) - start
    context_len = gl.load(p_context_lens + i_row)
    first_query = (i_tile - (start // BQ + i_row)) * BQ
    first_position = context_len - query_len + first_query
    last = gl.minimum(context_len, first_position + BQ)
    valid = (query_len > 1) & (first_query < query_len) & (i_item < num_items)
    # a row without keys has one tile, all masked
    num_tiles = gl.where(valid, gl.maximum(gl.cdiv(last, BN), 1), 0)
    queries = (start + first_query, query_len - first_query, first_position)
    return i_head, i_row, context_len, num_tiles, queries


@gluon.jit
def _fetch(
    kv_desc, ring, stage, phase, places, kind, i_head,
    BOXES: gl.constexpr, PANELS: gl.constexpr, BYTES: gl.constexpr,
):  # fmt: skip
    """Have the copy engine fill a stage of a ring, kind 0 keys and 1 values, once it is free."""
    boxes, _, full, empty = ring
    blocks, rows = places
    mbarrier.wait(empty.index(stage), phase ^ 1)
    mbarrier.expect(full.index(stage), BYTES)
    for i_p in gl.static_range(PANELS):
        for i in gl.static_range(BOXES):
            _load_box(
                kv_desc,
                [blocks[i], kind, i_head, rows[i], i_p * PANEL],
                full.index(stage),
                boxes.index((stage * PANELS + i_p) * BOXES + i),
            )


@gluon.jit
def _produce(
    kv_desc, k_ring, v_ring, p_tables, stride_table, batch,
    KV_HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr, BQ: gl.constexpr,
    BN: gl.constexpr, BOX: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The fetching warp. Past a row's keys everything is zero, as stale slots may hold NaN.

    The copy engine fills with zeros what lies outside the pool: so boxes without keys are read
    from block -1, and a row's last box from so many rows before its page's start (or from other
    keys' rows) that it ends with the row's last key.
    """
    BOXES: gl.constexpr = BN // BOX
    PANELS: gl.constexpr = HEAD_DIM // PANEL
    BYTES: gl.constexpr = BN * HEAD_DIM * 2
    done = 0
    for i_round in range(gl.cdiv(batch[3], gl.num_programs(0))):
        i_head, i_row, context_len, num_tiles, _ = _find_item(batch, i_round, KV_HEADS, BQ, BN)
        p_table = p_tables + i_row.to(gl.int64) * stride_table
        last_box = gl.cdiv(context_len, BOX) - 1
        for j in range(num_tiles):
            first_box = (num_tiles - 1 - j) * BOXES
            blocks = ()
            rows = ()
            for i in gl.static_range(BOXES):
                i_box = first_box + i
                p_block = p_table + i_box * BOX // BLOCK_SIZE
                block = gl.load(p_block, mask=i_box <= last_box, other=-1)
                blocks = blocks + (block,)  # type: ignore[assignment] # noqa: RUF005
                short = gl.where(i_box == last_box, (last_box + 1) * BOX - context_len, 0)
                row = i_box * BOX % BLOCK_SIZE - short
                rows = rows + (row,)  # type: ignore[assignment] # noqa: RUF005
            places = (blocks, rows)
            stage = (done + j) % STAGES
            phase = (done + j) // STAGES & 1
            _fetch(kv_desc, k_ring, stage, phase, places, 0, i_head, BOXES, PANELS, BYTES)
            _fetch(kv_desc, v_ring, stage, phase, places, 1, i_head, BOXES, PANELS, BYTES)
        done += num_tiles


@gluon.jit
def _by_lane(b_s):
    """[64, BN] as [64, BN / 8, 8]: along axis 1 it is reduced in a thread's own registers."""
    return gl.reshape(b_s, [64, b_s.shape[1] // 8, 8])


@gluon.jit
def _softmax(b_s, b_m, scale, WEIGHTS: gl.constexpr, TYPE: gl.constexpr):
    """A tile's weights, their sums [64, 8], what to scale the earlier ones by, the new maximum."""
    b_tile_m = gl.max(gl.max(_by_lane(b_s), axis=1), axis=1)  # [64]
    b_m_new = gl.maximum(b_m, gl.convert_layout(b_tile_m, b_m.type.layout))
    # a row that has seen no key yet keeps -inf; subtracting it from itself would be NaN
    b_m_scaled = gl.where(b_m_new == float("-inf"), 0.0, b_m_new) * scale
    b_p = gl.exp2(b_s * scale - gl.expand_dims(b_m_scaled, 1))  # [64, BN]
    b_decay = gl.exp2(b_m * scale - b_m_scaled)
    b_sums = gl.sum(_by_lane(b_p), axis=1)
    return gl.convert_layout(b_p.to(TYPE), WEIGHTS), b_sums, b_decay, b_m_new


@gluon.jit
def _scale_rows(b_x, b_factor):
    LAYOUT: gl.constexpr = gl.SliceLayout(1, b_x.type.layout)
    return b_x * gl.expand_dims(gl.convert_layout(b_factor, LAYOUT), 1)


@gluon.jit
def _hide_last_box(
    b_s, b_position, context_len, first_key, BOX: gl.constexpr, SCORES: gl.constexpr
):
    """Mask the tile with a row's last keys, whose last box ends, not starts, with keys of it."""
    o_n = first_key + gl.arange(0, b_s.shape[1], layout=gl.SliceLayout(0, SCORES))
    box_start = (gl.cdiv(context_len, BOX) - 1) * BOX
    o_key = gl.where(o_n < box_start, o_n, o_n - (box_start + BOX - context_len))
    # what fills the box is later than any query
    o_key = gl.where((o_n >= box_start) & (o_key < box_start), context_len, o_key)
    m_s = gl.expand_dims(o_key, 0) <= gl.expand_dims(b_position, 1)
    return gl.where(m_s, b_s, float("-inf"))


@gluon.jit
def _attend_tiles(
    q, k_ring, v_ring, done, num_tiles, b_position, first_position, context_len, scale,
    HEAD_DIM: gl.constexpr, BN: gl.constexpr, BOX: gl.constexpr, STAGES: gl.constexpr,
    SCORES: gl.constexpr, MIX: gl.constexpr, WEIGHTS: gl.constexpr,
):  # fmt: skip
    """The sum [64] and the mix [64, HEAD_DIM] of the keys up to each query's position."""
    _, k_tiles, k_full, k_empty = k_ring
    _, v_tiles, v_full, v_empty = v_ring
    b_zero = gl.zeros([64, BN], gl.float32, SCORES)
    b_m = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
    b_acc = gl.zeros([64, HEAD_DIM], gl.float32, MIX)
    stage = done % STAGES
    phase = done // STAGES & 1
    mbarrier.wait(k_full.index(stage), phase)
    b_s = warpgroup_mma(q, k_tiles.index(stage).permute((1, 0)), b_zero, use_acc=False)
    mbarrier.arrive(k_empty.index(stage), count=1)
    b_s = _hide_last_box(b_s, b_position, context_len, (num_tiles - 1) * BN, BOX, SCORES)
    b_p, b_l, _, b_m = _softmax(b_s, b_m, scale, WEIGHTS, q.dtype)
    mbarrier.wait(v_full.index(stage), phase)
    for j in range(1, num_tiles):
        before = stage
        stage = (done + j) % STAGES
        phase = (done + j) // STAGES & 1
        mbarrier.wait(k_full.index(stage), phase)
        b_s = warpgroup_mma(
            q, k_tiles.index(stage).permute((1, 0)), b_zero, use_acc=False, is_async=True
        )
        b_acc = warpgroup_mma(b_p, v_tiles.index(before), b_acc, is_async=True)
        b_s = warpgroup_mma_wait(1, deps=[b_s])
        mbarrier.arrive(k_empty.index(stage), count=1)
        first_key = (num_tiles - 1 - j) * BN
        if first_key + BN - 1 > first_position:
            o_n = first_key + gl.arange(0, BN, layout=gl.SliceLayout(0, SCORES))
            m_s = gl.expand_dims(o_n, 0) <= gl.expand_dims(b_position, 1)
            b_s = gl.where(m_s, b_s, float("-inf"))
        b_next, b_sums, b_decay, b_m = _softmax(b_s, b_m, scale, WEIGHTS, q.dtype)
        b_l = _scale_rows(b_l, b_decay) + b_sums
        # Also keeps the assembler from moving the wait for the mix to before the softmax: this one
        # ends a basic block.
        mbarrier.wait(v_full.index(stage), phase)
        b_acc, b_p, b_next = warpgroup_mma_wait(0, deps=[b_acc, b_p, b_next])
        mbarrier.arrive(v_empty.index(before), count=1)
        b_acc = _scale_rows(b_acc, b_decay)
        b_p = b_next
    b_acc = warpgroup_mma(b_p, v_tiles.index(stage), b_acc)
    mbarrier.arrive(v_empty.index(stage), count=1)
    return gl.sum(b_l, axis=1), b_acc


@gluon.jit
def _consume(
    q_smem, k_ring, v_ring, p_q, p_out, strides, batch, scale, HALF: gl.constexpr,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, BQ: gl.constexpr,
    BN: gl.constexpr, BOX: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """A warpgroup: rows 64 * HALF onwards of each item's tile, from queries to output."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    MIX: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, MIX, 2)
    LANES: gl.constexpr = HEAD_DIM // 8
    # 16 bytes a lane
    B: gl.constexpr = gl.BlockedLayout([1, 8], [32 // LANES, LANES], [4, 1], [1, 0])
    stride_qt, stride_qh = strides
    stride_ot: gl.constexpr = KV_HEADS * GROUP * HEAD_DIM
    q = q_smem.index(HALF)
    o_m = 64 * HALF + gl.arange(0, 64, layout=gl.SliceLayout(1, B))
    o_d = gl.expand_dims(gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, B)), 0)
    o_q = o_m // GROUP
    o_q_tile = gl.expand_dims(o_q * stride_qt + o_m % GROUP * stride_qh, 1) + o_d
    o_out_tile = gl.expand_dims(o_q * stride_ot + o_m % GROUP * HEAD_DIM, 1) + o_d
    o_row = (64 * HALF + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))) // GROUP
    done = 0
    for i_round in range(gl.cdiv(batch[3], gl.num_programs(0))):
        i_head, _, context_len, num_tiles, queries = _find_item(batch, i_round, KV_HEADS, BQ, BN)
        if num_tiles > 0:
            i_token = queries[0].to(gl.int64)
            i_q_head = i_head.to(gl.int64) * GROUP
            m_md = gl.expand_dims((o_q < queries[1]) & (o_q < BQ), 1) & (o_d < HEAD_DIM)
            p_q_tile = p_q + i_token * stride_qt + i_q_head * stride_qh + o_q_tile
            q.store(gl.load(p_q_tile, mask=m_md, other=0.0))
            # what the tensor cores read must be in place, of all warps
            fence_async_shared()
            _sync_warps()
            b_sum, b_acc = _attend_tiles(
                q, k_ring, v_ring, done, num_tiles, queries[2] + o_row, queries[2], context_len,
                scale, HEAD_DIM, BN, BOX, STAGES, SCORES, MIX, WEIGHTS,
            )  # fmt: skip
            # a token without keys gets zeros
            b_out = _scale_rows(b_acc, 1.0 / gl.where(b_sum == 0.0, 1.0, b_sum))
            q.store(b_out.to(q.dtype))
            p_out_tile = p_out + i_token * stride_ot + i_q_head * HEAD_DIM + o_out_tile
            gl.store(p_out_tile, q.load(B), mask=m_md)
            _sync_warps()
            done += num_tiles


@gluon.jit
def _ring(
    kv_desc, HEAD_DIM: gl.constexpr, BN: gl.constexpr, BOX: gl.constexpr, STAGES: gl.constexpr
):  # fmt: skip
    """Shared memory as boxes and as tiles, and the barriers of its stages: full, empty."""
    BOXES: gl.constexpr = STAGES * BN * HEAD_DIM // (BOX * PANEL)
    boxes = gl.allocate_shared_memory(kv_desc.dtype, [BOXES, 1, 1, 1, BOX, PANEL], kv_desc.layout)
    tiles = _view_as(boxes, kv_desc.dtype, [STAGES, BN, HEAD_DIM], gl.NVMMASharedLayout(128, 16, 2))
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    return boxes, tiles, full, empty


@gluon.jit(do_not_specialize=["num_rows", "num_items", "stride_table"])
def extend_hopper_kernel(
    kv_desc, p_q, p_out, p_query_start, p_context_lens, p_tables, num_rows, num_items,
    stride_qt, stride_qh, stride_table, scale,
    GROUP: gl.constexpr, KV_HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr,
    BN: gl.constexpr, BOX: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Programs share out num_items tiles of 128 rows (tokens x group) and key-value heads.

    kv_desc describes the pool [blocks, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM] in boxes of BOX tokens
    and PANEL columns. Launch with 4 warps and maxnreg 168: 12 warps use all registers there are.
    """
    BQ: gl.constexpr = 128 // GROUP
    q_smem = gl.allocate_shared_memory(
        kv_desc.dtype, [2, 64, HEAD_DIM], gl.NVMMASharedLayout(128, 16, 2)
    )
    k_ring = _ring(kv_desc, HEAD_DIM, BN, BOX, STAGES)
    v_ring = _ring(kv_desc, HEAD_DIM, BN, BOX, STAGES)
    batch = (p_query_start, p_context_lens, num_rows, num_items)
    strides = (stride_qt, stride_qh)
    scale = scale * LOG2_E
    gl.warp_specialize(
        [
            (_consume, (
                q_smem, k_ring, v_ring, p_q, p_out, strides, batch, scale, 0,
                KV_HEADS, GROUP, HEAD_DIM, BQ, BN, BOX, STAGES,
            )),
            (_consume, (
                q_smem, k_ring, v_ring, p_q, p_out, strides, batch, scale, 1,
                KV_HEADS, GROUP, HEAD_DIM, BQ, BN, BOX, STAGES,
            )),
            (_produce, (
                kv_desc, k_ring, v_ring, p_tables, stride_table, batch,
                KV_HEADS, BLOCK_SIZE, HEAD_DIM, BQ, BN, BOX, STAGES,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
