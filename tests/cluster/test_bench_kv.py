"""`baton bench kv`: what it measures, and that the bare transports carry what they should."""

from __future__ import annotations

import random

import pytest
import torch

from baton.cluster.bench.kv import row
from baton.cluster.bench.kv_cases import Case, alike_pairs, cases, unlike_pairs
from baton.cluster.bench.kv_raw import RawStream, serve_stream
from baton.cluster.bench.kv_table import line


def test_block_lists_are_what_the_description_says() -> None:
    rng = random.Random(0)
    pairs = [*alike_pairs(), *unlike_pairs()]
    for pair in pairs:
        for case in [*cases(pair), Case(8 << 20, pair, scattered=True)]:
            lists = case.block_lists(3, rng)
            assert len(lists) == case.num_pushes
            for local, remote in lists:
                assert (len(local), len(remote)) == (case.num_local, case.num_remote)
                assert max(local) < pair.num_blocks(pair.source)
                assert max(remote) < pair.num_blocks(pair.target)
            sent = case.num_remote * pair.kv_map.sent_layout.block_bytes
            assert sent == case.num_bytes, case.describe()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_bare_stream_carries_the_bytes() -> None:
    source = torch.arange(256 << 10, dtype=torch.uint8)
    target = torch.zeros_like(source)
    stream = RawStream(source, serve_stream(target))
    stream.write(4096, 8192)
    stream.close()
    assert target[4096 : 4096 + 8192].equal(source[4096 : 4096 + 8192])
    assert int(target[:4096].sum()) == 0


def test_a_row_compares_medians() -> None:
    pair = next(alike_pairs())
    case = Case(1 << 20, pair, scattered=True)
    seconds = {"ours": [2e-3], "raw": [1e-3], "memcpy": [5e-4], "raw_blocks": [2e-3]}
    found = row("nixl", case, seconds)
    assert found["ratio"] == 0.5
    assert found["ratio_blocks"] == 1.0
    assert found["latency_us"]["p50"] == 2000.0
    assert "ratio 0.50" in line(found)
