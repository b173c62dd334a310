"""Random fault schedules over real workers: right tokens, right blocks, no block lost.

A few here; `python -m benchmarks.kv_faults` runs a thousand.
"""

from __future__ import annotations

import pytest
from tests.workers.fault_rig import SAMPLING, rig

from baton.kvtransfer.connector import PeerKey
from baton.kvtransfer.faulty import FaultyWire
from baton.kvtransfer.wire import RunIds, Transfer


@pytest.mark.parametrize(("connector", "count"), [("local", 25), ("nixl", 8), ("nccl", 8)])
async def test_random_faults_cost_time_and_nothing_else(connector: str, count: int) -> None:
    async with rig(connector, seed=1) as faulty:
        for seed in range(count):
            await faulty.run(seed)
        assert sum(faulty.faults.happened.values()) > 0
        assert faulty.ledger.num_checked > 0
        assert (await faulty.pair.prefill.load()).num_pulled_tokens > 0
        await faulty.good_transfer_s()


class SwappingWire(FaultyWire):
    """Writes to the right blocks in the wrong order: what nothing but a checksum notices."""

    def write(
        self, key: PeerKey, local_runs: RunIds, remote_runs: RunIds, notice: bytes
    ) -> Transfer:
        return super().write(key, local_runs, remote_runs[::-1].copy(), notice)


async def test_the_check_catches_kv_in_the_wrong_blocks() -> None:
    async with rig("local", seed=1, faulty=SwappingWire) as faulty:
        handle = faulty.gateway.submit(
            faulty.prompts[-1], SAMPLING, prefill=[faulty.pair.prefill_member]
        )
        await faulty.gateway.wait(handle)
        assert faulty.ledger.wrong
