from __future__ import annotations

import pytest

from baton.cluster.node_drain import HEAD_WAIT_S, Node, NodeDrain, find_node
from baton.protos.errors import ConfigError, UnavailableError

HEAD = Node(node_id="head", address="10.0.0.1", is_head=True)
WORKER = Node(node_id="worker", address="10.0.0.2", is_head=False)


class Table:
    """Ray's records as a script: what is there at each second."""

    def __init__(self, *, replicas_until_s: float = 0.0, leaves: tuple[float, float] | None = None):
        self.now_s = 0.0
        self.drained: list[tuple[str, float]] = []
        self.away = False
        self._replicas_until_s = replicas_until_s
        self._leaves = leaves

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def nodes(self) -> list[Node]:
        gone = self._leaves is not None and self.now_s >= self._leaves[1]
        return [HEAD] if gone else [HEAD, WORKER]

    def num_replicas(self, node_id: str) -> int:
        if self.away:
            raise UnavailableError("away")
        return int(self.now_s < self._replicas_until_s)

    def draining(self) -> set[str]:
        return {"worker"} if self._leaves and self.now_s >= self._leaves[0] else set()

    def drain(self, node_id: str, deadline_s: float) -> None:
        self.drained.append((node_id, deadline_s))

    def run(self, node: Node, timeout_s: float) -> bool:
        return NodeDrain(self, monotonic_s=lambda: self.now_s, sleep=self.sleep).run(
            node, timeout_s
        )


def test_a_worker_node_is_drained_until_it_is_free() -> None:
    table = Table(replicas_until_s=7.0)
    assert table.run(WORKER, 60.0)
    assert table.drained == [("worker", 60.0)]
    assert 7.0 <= table.now_s < 8.0


@pytest.mark.parametrize("away", [False, True])
def test_the_deadline_ends_the_wait(away: bool) -> None:
    table = Table(replicas_until_s=100.0)
    table.away = away
    assert not table.run(WORKER, 20.0)
    assert table.now_s >= 20.0


def test_a_head_alone_is_not_held_up() -> None:
    table = Table()
    assert table.run(HEAD, 60.0)
    assert not table.drained
    assert table.now_s <= HEAD_WAIT_S + 1


def test_a_head_waits_for_those_that_leave() -> None:
    table = Table(leaves=(3.0, 40.0))
    assert table.run(HEAD, 60.0)
    assert table.now_s >= 40.0


def test_the_node_is_found_by_address_or_id() -> None:
    table = Table()
    assert find_node(table, "", "10.0.0.2") == WORKER
    assert find_node(table, "head", "") == HEAD
    with pytest.raises(ConfigError, match=r"0 nodes of Ray have the address 1\.1\.1\.1; give the"):
        find_node(table, "", "1.1.1.1")
