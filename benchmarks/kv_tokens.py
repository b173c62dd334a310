"""Greedy tokens of every connector, between unlike blocks and ranks, wherever a prefix is known.

    python -m benchmarks.kv_tokens [--connector nixl] [--output FILE]

A cell is a prompt whose KV goes from a prefill worker to a decode worker over a connector, where
the two have blocks and ranks of some sizes, and where a part of the prompt is known to one of them,
to both, or was evicted to host memory; its greedy tokens (float32, CPU) must be those of one engine
without a cluster, and its KV must have come as the cell says. The first cell that differs ends the
run. Rows of other connectors stay in the file.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from tests.engine.parallel.ranks import ThreadRanks
from tests.kvtransfer.lmcache_server import running_server
from tests.workers.conftest import Pair, engine_config, started_pair
from tests.workers.probe import Answer, Probe
from tests.workers.test_pair import GREEDY, prompts, run_alone

from baton.kvtransfer.lmcache.config import AUTO
from baton.kvtransfer.tiers.config import TierConfig
from baton.protos.types import Role
from benchmarks.results_file import merge_results

# Ranks and block sizes of a prefill and a decode worker.
LAYOUTS: Final = (
    ((1, 16), (1, 16)),
    ((1, 16), (1, 8)),
    ((1, 8), (1, 32)),
    ((1, 24), (1, 16)),
    ((2, 16), (2, 16)),
    ((1, 16), (2, 24)),
    ((2, 16), (1, 16)),
    ((4, 24), (2, 8)),
)
# Room for three of the prompts in a pool, and for all in host memory.
POOL_TOKENS: Final = 640
TIERS: Final = TierConfig(cpu_gib=0.06)


class Cells:
    """The cells of one connector and layout. Each prompt is asked under a salt of its own."""

    def __init__(self, pair: Pair, gateway: Probe, asked: list[list[int]]) -> None:
        self._pair = pair
        self._gateway = gateway
        self._asked = asked
        self._fillers = prompts(8, seed=9)[7:] * 6

    def all(self) -> dict[str, Callable[[bytes, list[int]], Awaitable[Answer]]]:
        return {
            "nothing known": self._remote,
            "half known to the decode worker": self._known_to_decode,
            "half known to both": self._known_to_both,
            "all known to both": self._all_known,
            "half pulled from the decode worker": self._pulled,
            "half pulled from the decode worker's host memory": self._pulled_from_host,
            "all known to both's host memory": self._evicted,
        }

    async def _ask(self, salt: bytes, prompt: list[int], **how: Any) -> Answer:
        return await self._gateway.wait(self._gateway.submit(prompt, GREEDY, salt=salt, **how))

    async def _remote(self, salt: bytes, prompt: list[int], **how: Any) -> Answer:
        return await self._ask(salt, prompt, prefill=[self._pair.prefill_member], **how)

    async def _known_to_decode(self, salt: bytes, prompt: list[int]) -> Answer:
        await self._ask(salt, prompt[: len(prompt) // 2])
        return await self._remote(salt, prompt)

    async def _known_to_both(self, salt: bytes, prompt: list[int]) -> Answer:
        await self._remote(salt, prompt[: len(prompt) // 2])
        return await self._remote(salt, prompt)

    async def _all_known(self, salt: bytes, prompt: list[int]) -> Answer:
        await self._remote(salt, prompt)
        return await self._remote(salt, prompt)

    async def _pulled(self, salt: bytes, prompt: list[int]) -> Answer:
        await self._ask(salt, prompt[: len(prompt) // 2])
        answer = await self._remote(salt, prompt, pull_from=self._pair.decode_member)
        assert answer.done is not None
        assert answer.done.num_pulled_tokens > 0
        return answer

    async def _pulled_from_host(self, salt: bytes, prompt: list[int]) -> Answer:
        await self._ask(salt, prompt[: len(prompt) // 2])
        await self._evict(salt, self._ask)
        answer = await self._remote(salt, prompt, pull_from=self._pair.decode_member)
        assert answer.done is not None
        assert answer.done.num_pulled_tokens > 0
        return answer

    async def _evicted(self, salt: bytes, prompt: list[int]) -> Answer:
        await self._remote(salt, prompt)
        await self._evict(salt, self._remote)
        before = await self._num_from_host()
        answer = await self._remote(salt, prompt)
        after = await self._num_from_host()
        assert all(a > b for a, b in zip(after, before, strict=True)), (before, after)
        return answer

    async def _evict(
        self, salt: bytes, ask: Callable[[bytes, list[int]], Awaitable[Answer]]
    ) -> None:
        for number, filler in enumerate(self._fillers):
            await ask(b"%b %d" % (salt, number), filler)

    async def _num_from_host(self) -> list[int]:
        found = []
        for worker in (self._pair.prefill, self._pair.decode):
            call = worker.host.loop.call(lambda engine: engine.statistics().tiers)
            tiers = await asyncio.wrap_future(call)
            assert tiers is not None
            found.append(tiers.num_host)
        return found


async def run(
    connector: str,
    address: str,
    layout: tuple[tuple[int, int], tuple[int, int]],
    expected: list[tuple[list[int], list[int]]],
) -> dict[str, Any]:
    """One row: the cells of one connector and layout."""
    engines = [
        engine_config(
            role,
            tensor_parallel_size=ranks,
            block_size=size,
            num_blocks=POOL_TOKENS // size,
            kv_tiers=TIERS,
        )
        for role, (ranks, size) in zip((Role.PREFILL, Role.DECODE), layout, strict=True)
    ]
    count = 0
    started = started_pair(*engines, connector=connector, lmcache=address, ranks=ThreadRanks())
    async with started as pair, Probe(pair.decode_member) as gateway:
        cells = Cells(pair, gateway, [prompt for prompt, _ in expected])
        for name, cell in cells.all().items():
            for prompt, tokens in expected:
                answer = await cell(f"{name} {len(prompt)}".encode(), prompt)
                assert answer.tokens == tokens, (layout, name, len(prompt))
                assert answer.done is not None
                assert answer.done.prefilled_by == "prefill-0", (layout, name, answer.done)
                count += 1
        await pair.check_all_free()
    ((from_ranks, from_size), (to_ranks, to_size)) = layout
    return {
        "connector": connector,
        "measure": f"greedy tokens: ranks {from_ranks} to {to_ranks}, blocks of {from_size} to"
        f" {to_size}",
        "ours": count,
        "raw": len(cells.all()) * len(expected),
        "unit": "equal answers",
        "prefixes": list(cells.all()),
    }


@contextmanager
def lmcache_address(connector: str) -> Iterator[str]:
    """Of a server of its own where the connector needs one."""
    if connector != "lmcache":
        yield AUTO
        return
    with running_server() as server:
        yield server.address


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connector", action="append", choices=["nixl", "nccl", "lmcache"])
    parser.add_argument("--output", default="benchmarks/results/kv_tokens.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    asked = [(prompt, GREEDY) for prompt in prompts(9)[7:]]
    expected = [*zip((prompt for prompt, _ in asked), run_alone(asked), strict=True)]
    for connector in arguments.connector or ["nixl", "nccl", "lmcache"]:
        with lmcache_address(connector) as address:
            one = partial(run, connector, address, expected=expected)
            for layout in LAYOUTS:
                row = asyncio.run(one(layout))
                print(row, flush=True)
                merge_results(arguments.output, [row], {}, key=("connector", "measure"))


if __name__ == "__main__":
    main()
