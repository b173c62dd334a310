"""What this gateway's plans look at, kept up to date by what changed rather than made for each."""

from __future__ import annotations

from collections.abc import Iterable

from baton.gateway.worker_link import WorkerLink
from baton.protos.types import Role
from baton.router.learning import ModelBook
from baton.router.view import ClusterView, Columns, WorkerState


class FleetView:
    """The usable workers of a roster as a ClusterView.

    `reset` when workers come or go, and now and then so that ages advance; `changed` for one
    worker's report, or for what was sent to it.
    """

    def __init__(self, models: ModelBook) -> None:
        self._models = models
        self._pools: tuple[Columns, Columns] | None = None
        self._dirty: set[WorkerLink] = set()

    def reset(self) -> None:
        self._pools = None

    def changed(self, link: WorkerLink) -> None:
        self._dirty.add(link)

    def cluster(self, links: Iterable[WorkerLink]) -> ClusterView:
        """links: the current link of every worker."""
        pools = self._pools
        if pools is None:
            pools = self._pools = _columns(links)
        else:
            for link in self._dirty:
                pool = pools[link.member.role is Role.PREFILL]
                if link.state is WorkerState.UP and link.member.worker_id in pool.rows:
                    pool.replace(link.view())
        self._dirty.clear()
        return ClusterView(
            decode=pools[0].workers,
            prefill=pools[1].workers,
            transfers=self._models.transfers,
            kv_bytes_per_token=self._models.kv_bytes_per_token,
            handshake_s=self._models.handshake_s,
            columns=pools,
        )


def _columns(links: Iterable[WorkerLink]) -> tuple[Columns, Columns]:
    up = [link for link in links if link.state is WorkerState.UP]
    decode = [link.view() for link in up if link.member.role is not Role.PREFILL]
    prefill = [link.view() for link in up if link.member.role is Role.PREFILL]
    return Columns(decode), Columns(prefill)
