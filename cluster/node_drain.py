"""Taking a node out of a Ray cluster without losing requests: what a pod runs before it is stopped.

Serve moves the replicas of a node that drains: it starts others elsewhere first, and stops these in
time for them to finish within the node's deadline. Nothing here connects to the node's raylet,
which may end as soon as it is idle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from baton.protos.errors import ConfigError, UnavailableError

POLL_S = 0.5
CALL_TIMEOUT_S = 10
# Pods of a cluster that is deleted are told at about the same time: a head looks this long for
# others that leave.
HEAD_WAIT_S = 10.0
# What a node waits for: replicas, and the ranks of a worker whose replica is on another node.
CLASSES = ("ServeReplica:", "RankActor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that is alive."""

    node_id: str
    address: str
    is_head: bool


class NodeTable(Protocol):
    """Ray's own records. Every call raises UnavailableError while they cannot be read."""

    def nodes(self) -> list[Node]: ...
    def num_replicas(self, node_id: str) -> int:
        """Serve's replicas, and other ranks of workers, that live on a node."""

    def draining(self) -> set[str]: ...
    def drain(self, node_id: str, deadline_s: float) -> None:
        """Nothing new is placed there; `deadline_s` from now it may be gone."""


class NodeDrain:
    """Drains one node and waits until it has nothing more to do."""

    def __init__(
        self,
        table: NodeTable,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._table = table
        self._now_s = monotonic_s
        self._sleep = sleep

    def run(self, node: Node, timeout_s: float) -> bool:
        """True when the node is free of replicas; False when `timeout_s` passed before that.

        A head is not drained, since the others need it: it waits for those that leave. Raises
        UnavailableError when draining cannot be begun.
        """
        end_s = self._now_s() + timeout_s
        if node.is_head:
            begun_s = min(end_s, self._now_s() + HEAD_WAIT_S)
            self._wait(lambda: bool(self._leaving(node)), begun_s)
            return self._wait(lambda: not self._leaving(node), end_s)
        self._table.drain(node.node_id, timeout_s)
        return self._wait(lambda: not self._table.num_replicas(node.node_id), end_s)

    def _leaving(self, node: Node) -> set[str]:
        alive = {other.node_id for other in self._table.nodes()} - {node.node_id}
        return alive & self._table.draining()

    def _wait(self, done: Callable[[], bool], end_s: float) -> bool:
        while self._now_s() < end_s:
            try:
                if done():
                    return True
            except UnavailableError:
                # Ray's records come back, or the deadline ends this.
                pass
            self._sleep(POLL_S)
        return False


def find_node(table: NodeTable, node_id: str, address: str) -> Node:
    """The node with this id, or else the one of this machine's address. Raises ConfigError."""
    nodes = table.nodes()
    found = [n for n in nodes if (n.node_id == node_id if node_id else n.address == address)]
    if len(found) == 1:
        return found[0]
    wanted = f"the id {node_id}" if node_id else f"the address {address}"
    raise ConfigError(
        f"{len(found)} nodes of Ray have {wanted}; give the one that leaves as --node-id, one of "
        + ", ".join(f"{n.node_id} at {n.address}" for n in nodes),
        param="node_id",
    )


class RayNodeTable:
    """`NodeTable` over the cluster's control store. Raises UnavailableError when it is away."""

    def __init__(self, address: str) -> None:
        # Without a driver, which would end with the raylet that it is connected to.
        from ray import _raylet
        from ray._private.state import GlobalState

        bindings: Any = _raylet
        try:
            self._gcs = bindings.GcsClient(address=address)
            self._state: Any = GlobalState()
            options = bindings.GcsClientOptions.create(
                address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
            )
            self._state._initialize_global_state(options)
        except Exception as error:
            raise UnavailableError(f"no Ray cluster answers at {address}: {error}") from error

    def nodes(self) -> list[Node]:
        return [
            Node(
                node_id=entry["NodeID"],
                address=entry["NodeManagerAddress"],
                is_head="node:__internal_head__" in entry.get("Resources", {}),
            )
            for entry in self._read(self._state.node_table)
            if entry.get("Alive", entry.get("alive"))
        ]

    def num_replicas(self, node_id: str) -> int:
        actors = self._read(lambda: self._state.actor_table(None, None, "ALIVE"))
        return sum(
            actor["Address"]["NodeID"] == node_id
            and str(actor.get("ActorClassName", "")).startswith(CLASSES)
            for actor in actors.values()
        )

    def draining(self) -> set[str]:
        return set(self._read(lambda: self._gcs.get_draining_nodes(timeout=CALL_TIMEOUT_S)))

    def drain(self, node_id: str, deadline_s: float) -> None:
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int((time.time() + deadline_s) * 1000)
        accepted, problem = self._read(
            lambda: self._gcs.drain_node(node_id, reason, "the pod is being stopped", deadline_ms)
        )
        if not accepted:
            raise UnavailableError(f"Ray does not drain the node {node_id}: {problem}")

    @staticmethod
    def _read(call: Callable[[], Any]) -> Any:
        try:
            return call()
        # Ray's bindings raise their own kinds, RuntimeError and ValueError among them.
        except Exception as error:
            raise UnavailableError(f"Ray's control store does not answer: {error}") from error
