# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Draws without sorting the vocabulary.

Rows without filters: one pass, many programs a row. Rows with filters: the unfiltered draw is taken
first; a token that the filters leave out takes with it all tokens that are no better, and the draw
is repeated among the rest (the noise stays the same, so the token that is drawn in the end is the
argmax over the filtered set, exactly). Rejecting this way is FlashInfer's idea; two rounds are
rarely exceeded.
"""

import triton
import triton.language as tl


@triton.jit
def _gumbel(b_token_key, key_0, key_1):
    b_x = (b_token_key + key_0).to(tl.uint32, bitcast=True)
    b_x = b_x ^ (b_x >> 16)
    b_x = b_x * 0x21F0AAAD
    b_x = b_x ^ key_1.to(tl.uint32, bitcast=True)
    b_x = b_x ^ (b_x >> 15)
    b_x = b_x * 0xD35A2D97
    b_x = b_x ^ (b_x >> 15)
    b_v = ((b_x & 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * (2.0**-31)
    b_v = tl.minimum(b_v, 1.0 - 2.0**-24)
    # log(1 - v) to full precision for small v (Kahan): the rounding of 1 - v divides out
    b_u = 1.0 - b_v
    b_taken = 1.0 - b_u
    b_log = tl.where(b_taken == 0.0, -b_v, tl.log(b_u) * (b_v / b_taken))
    return -tl.log(-b_log)


@triton.jit
def _scores(p_row, p_token_keys, o_v, m_v, temperature, key_0, key_1):
    """Logits and, of rows with a temperature, logits plus noise."""
    b_logit = tl.load(p_row + o_v, mask=m_v, other=float("-inf")).to(tl.float32)
    b_score = b_logit
    if temperature > 0.0:
        b_key = tl.load(p_token_keys + o_v, mask=m_v, other=0)
        b_score = b_logit + temperature * _gumbel(b_key, key_0, key_1)
    return b_logit, b_score


@triton.jit
def _better(value, index, best_value, best_index):
    # the lower id of equals; NaN, as torch has it, is the best of all
    nan = (value != value) & (best_value == best_value)
    return (value > best_value) | ((value == best_value) & (index < best_index)) | nan


@triton.jit(do_not_specialize=["num_rows", "tiles"])
def draw_kernel(
    p_logits, p_row_keys, p_token_keys, p_temperatures, p_skip, p_values, p_indices, p_counts,
    p_out, stride_row, num_rows, vocab, tiles,
    HAS_NOISE: tl.constexpr, HAS_SKIP: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Best token of a row; grid [rows, chunks of `tiles`]. Whoever is last compares the chunks'.

    p_counts: int32 [rows], zero before and after. p_skip: nonzero for rows that are not drawn here.
    """
    i_row = tl.program_id(0).to(tl.int64)
    i_chunk = tl.program_id(1)
    chunks = tl.num_programs(1)
    skip = 0
    if HAS_SKIP:
        skip = tl.load(p_skip + i_row)
    if skip == 0:
        p_row = p_logits + i_row * stride_row
        temperature, key_0, key_1 = 0.0, 0, 0
        if HAS_NOISE:
            temperature = tl.load(p_temperatures + i_row)
            key_0 = tl.load(p_row_keys + i_row)
            key_1 = tl.load(p_row_keys + num_rows + i_row)
        b_best = tl.full([BV], float("-inf"), dtype=tl.float32)
        b_index = tl.zeros([BV], dtype=tl.int32) + vocab
        for i in range(tiles):
            o_v = (i_chunk * tiles + i) * BV + tl.arange(0, BV)
            m_v = o_v < vocab
            if HAS_NOISE:
                _, b_score = _scores(p_row, p_token_keys, o_v, m_v, temperature, key_0, key_1)
            else:
                b_score = tl.load(p_row + o_v, mask=m_v, other=float("-inf")).to(tl.float32)
            # NaN as the largest of numbers, so that one comparison does
            b_score = tl.where(b_score != b_score, float("inf"), b_score)
            b_new = (b_score > b_best) | ((b_index == vocab) & m_v)
            b_best = tl.where(b_new, b_score, b_best)
            b_index = tl.where(b_new, o_v, b_index)
        best = tl.max(b_best, axis=0)
        index = tl.min(tl.where(b_best == best, b_index, vocab), axis=0)
        if chunks == 1:
            tl.store(p_out + i_row, index.to(tl.int64))
        else:
            tl.store(p_values + i_row * chunks + i_chunk, best)
            tl.store(p_indices + i_row * chunks + i_chunk, index)
            tl.debug_barrier()
            if tl.atomic_add(p_counts + i_row, 1, sem="acq_rel", scope="gpu") == chunks - 1:
                tl.store(p_counts + i_row, 0)
                o_c = tl.arange(0, BC)
                m_c = o_c < chunks
                p_c = i_row * chunks + o_c
                b_value = tl.load(
                    p_values + p_c, mask=m_c, other=float("-inf"), cache_modifier=".cg"
                )
                b_i = tl.load(p_indices + p_c, mask=m_c, other=vocab, cache_modifier=".cg")
                best = tl.max(b_value, axis=0)
                index = tl.min(tl.where(b_value == best, b_i, vocab), axis=0)
                tl.store(p_out + i_row, index.to(tl.int64))


@triton.jit
def _mass(p_row, vocab, low, top, temperature, BV: tl.constexpr):
    """How many logits are `low` or more, and their mass relative to `top`."""
    b_count = tl.zeros([BV], dtype=tl.int32)
    b_mass = tl.zeros([BV], dtype=tl.float32)
    for i_v in range(0, vocab, BV):
        o_v = i_v + tl.arange(0, BV)
        b_x = tl.load(p_row + o_v, mask=o_v < vocab, other=float("-inf")).to(tl.float32)
        m_x = (b_x >= low) & (o_v < vocab)
        b_count += m_x.to(tl.int32)
        b_mass += tl.where(m_x, tl.exp((b_x - top) / temperature), 0.0)
    return tl.sum(b_count, axis=0), tl.sum(b_mass, axis=0)


@triton.jit
def _kth_mass(p_row, vocab, limit, top, temperature, top_k, BV: tl.constexpr):
    """Mass of the top_k best of the logits from `limit` on, of which there are more than top_k."""
    # The k-th best lies in [low, high): halving ends where no float is between the two.
    low, high = limit, top
    count, mass = _mass(p_row, vocab, top, top, temperature, BV)
    if count >= top_k:
        # all of them are as good as the best
        mass_k = top_k.to(tl.float32)
    else:
        middle = 0.5 * (low + high)
        while (middle > low) & (middle < high):
            count, mass = _mass(p_row, vocab, middle, top, temperature, BV)
            if count >= top_k:
                low = middle
            else:
                high = middle
            middle = 0.5 * (low + high)
        # those from `high` on are fewer than k, the rest are equals of `low`
        count, mass = _mass(p_row, vocab, high, top, temperature, BV)
        mass_k = mass + (top_k - count).to(tl.float32) * tl.exp((low - top) / temperature)
    return mass_k


@triton.jit(do_not_specialize=["num_rows"])
def filtered_kernel(
    p_logits, p_row_keys, p_token_keys, p_temperatures, p_rows, p_min_ps, p_top_ks, p_top_ps,
    p_out, stride_row, num_rows, vocab, BV: tl.constexpr,
):  # fmt: skip
    """One program a row with filters; grid [filtered rows]."""
    i = tl.program_id(0)
    i_row = tl.load(p_rows + i)
    p_row = p_logits + i_row * stride_row
    temperature = tl.load(p_temperatures + i_row)
    key_0 = tl.load(p_row_keys + i_row)
    key_1 = tl.load(p_row_keys + num_rows + i_row)
    top_k, top_p = tl.load(p_top_ks + i), tl.load(p_top_ps + i)
    b_top = tl.full([BV], float("-inf"), dtype=tl.float32)
    for i_v in range(0, vocab, BV):
        o_v = i_v + tl.arange(0, BV)
        b_x = tl.load(p_row + o_v, mask=o_v < vocab, other=float("-inf")).to(tl.float32)
        b_top = tl.maximum(b_top, b_x)
    top = tl.max(b_top, axis=0)
    # below every logit of a finite row, and no less than the least float
    min_p = tl.load(p_min_ps + i)
    slack = temperature * tl.log(tl.maximum(min_p, 1e-37))
    limit = tl.maximum(tl.where(min_p > 0.0, top + slack, -3.0e38), -3.0e38)
    count, total = _mass(p_row, vocab, limit, top, temperature, BV)
    if (top_p < 1.0) & (top_k < count):
        total = _kth_mass(p_row, vocab, limit, top, temperature, top_k, BV)
    # those allowed: better than (pivot, pivot_index), which was refused
    pivot, pivot_index = limit, vocab
    accepted = 0
    index = vocab
    while accepted == 0:
        b_best = tl.full([BV], float("-inf"), dtype=tl.float32)
        b_index = tl.zeros([BV], dtype=tl.int32) + vocab
        for i_v in range(0, vocab, BV):
            o_v = i_v + tl.arange(0, BV)
            m_v = o_v < vocab
            b_x, b_score = _scores(p_row, p_token_keys, o_v, m_v, temperature, key_0, key_1)
            m_v = m_v & ((b_x > pivot) | ((b_x == pivot) & (o_v < pivot_index)))
            b_new = m_v & (b_score > b_best)
            b_best = tl.where(b_new, b_score, b_best)
            b_index = tl.where(b_new, o_v, b_index)
        best = tl.max(b_best, axis=0)
        index = tl.min(tl.where(b_best == best, b_index, vocab), axis=0)
        index = tl.minimum(index, vocab - 1)
        chosen = tl.load(p_row + index).to(tl.float32)
        b_count = tl.zeros([BV], dtype=tl.int32)
        b_mass = tl.zeros([BV], dtype=tl.float32)
        for i_v in range(0, vocab, BV):
            o_v = i_v + tl.arange(0, BV)
            b_x = tl.load(p_row + o_v, mask=o_v < vocab, other=float("-inf")).to(tl.float32)
            m_x = (b_x > chosen) | ((b_x == chosen) & (o_v < index))
            b_count += m_x.to(tl.int32)
            b_mass += tl.where(m_x, tl.exp((b_x - top) / temperature), 0.0)
        before = tl.sum(b_count, axis=0)
        inside = (before < top_k) & ((top_p >= 1.0) | (tl.sum(b_mass, axis=0) < top_p * total))
        # the best token is always in; a row of NaN must end too
        accepted = tl.where(inside | (before == 0) | (best != best), 1, 0)
        pivot, pivot_index = chosen, index
    tl.store(p_out + i_row, index.to(tl.int64))
