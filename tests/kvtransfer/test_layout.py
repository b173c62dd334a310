"""Layouts and notices: what travels between workers reads back the same, or is refused in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.kvtransfer.sides import LAYOUT

from baton.kvtransfer.connector import Notice, PeerKey
from baton.kvtransfer.layout import ITEM_BYTES, KVLayout
from baton.kvtransfer.pool import check_pool, prefault
from baton.protos.errors import ConfigError, LayoutMismatchError, TransferError


def test_block_bytes_are_those_of_the_tensor() -> None:
    for name in ITEM_BYTES:
        layout = replace(LAYOUT, dtype=name)
        pool = torch.zeros(2, *layout.block_shape, dtype=getattr(torch, name))
        assert layout.block_bytes == pool[0].nbytes
        assert check_pool(pool, layout) == 2


def test_a_layout_reads_back_and_rejects_anything_else() -> None:
    assert KVLayout.from_json(LAYOUT.to_json()) == LAYOUT
    for text, words in (
        ("{", "not JSON"),
        ("[]", "exactly the fields"),
        (LAYOUT.to_json().replace("kv_heads", "heads"), "exactly the fields"),
        (LAYOUT.to_json().replace("float32", "int7"), "dtype is 'int7'"),
        (LAYOUT.to_json().replace('"block_size": 4', '"block_size": 0'), "block_size is 0"),
    ):
        with pytest.raises(LayoutMismatchError, match=words):
            KVLayout.from_json(text)


def test_a_layout_that_describes_no_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_layers is 0") as caught:
        replace(LAYOUT, num_layers=0)
    assert caught.value.param == "num_layers"


def test_blocks_of_tokens_round_up() -> None:
    assert [LAYOUT.num_blocks_for(tokens) for tokens in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_prefault_leaves_the_values() -> None:
    pool = torch.randn(9, *LAYOUT.block_shape)
    before = pool.clone()
    prefault(pool)
    assert torch.equal(pool, before)


def test_a_pool_with_gaps_is_refused() -> None:
    pool = torch.zeros(8, *LAYOUT.block_shape)
    with pytest.raises(ConfigError, match="contiguous"):
        check_pool(pool[::2], LAYOUT)


@given(
    st.builds(
        Notice,
        st.text(max_size=40),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
    )
)
def test_notices_read_back(notice: Notice) -> None:
    assert Notice.from_bytes(notice.to_bytes()) == notice


@given(st.binary(max_size=40))
def test_other_bytes_are_no_notice(data: bytes) -> None:
    if not data.startswith(b"BKV1"):
        with pytest.raises(TransferError):
            Notice.from_bytes(data)


def test_peer_keys_read_back_and_refuse_ambiguity() -> None:
    key = PeerKey("decode-0", "a1b2")
    assert PeerKey.parse(str(key)) == key
    for text in ("decode-0", "@x", "x@", "a@b@c", ""):
        with pytest.raises(TransferError):
            PeerKey.parse(text)
