"""Which workers there are and what is known of them: links, load views, the prefix index."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from baton.gateway.fleet_audit import KvAudit
from baton.gateway.fleet_config import Directory, FleetConfig
from baton.gateway.fleet_view import FleetView
from baton.gateway.worker_link import WorkerLink
from baton.protos import worker_pb2 as pb
from baton.protos.adapters import AdapterLoad
from baton.protos.clock import Clock
from baton.protos.types import KvEvents, Member, Role
from baton.router.learning import ModelBook
from baton.router.plan import Plan
from baton.router.prefix_index import PrefixIndex
from baton.router.view import ClusterView, Columns, WorkerState

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What every worker of the fleet agrees on, from their hellos; `max_model_len` is the least,
    `block_size` that of the decode workers, `block_sizes` those of all, that one first.
    """

    model: str
    model_digest: str
    block_size: int
    block_sizes: tuple[int, ...]
    max_model_len: int
    vocab_size: int


class Roster:
    """Follows the directory; keeps one link to the newest incarnation of every worker.

    A link that is replaced (a new incarnation, or KV events that were lost) is retired: it takes
    nothing new and ends with its last request. A worker that the directory no longer lists stays
    while its stream stands, so that a directory that lost its memory costs no request.
    `on_change` is called whenever a request that found no worker might find one now, `on_load`
    whenever a worker has reported.
    """

    def __init__(
        self,
        directory: Directory,
        on_change: Callable[[], None],
        on_load: Callable[[], None],
        *,
        gateway_id: str,
        secret: str,
        config: FleetConfig,
        clock: Clock,
        models: ModelBook,
        audit: KvAudit,
    ) -> None:
        self.index = PrefixIndex()
        self.models = models
        self._audit = audit
        self.facts: ModelFacts | None = None
        self.num_links_lost = 0
        self._directory = directory
        self._on_change = on_change
        self._on_load = on_load
        self._gateway_id = gateway_id
        self._secret = secret
        self._config = config
        self._clock = clock
        self._links: dict[str, WorkerLink] = {}
        self._retired: list[WorkerLink] = []
        self._draining: set[str] = set()
        self._poller: asyncio.Task[None] | None = None
        self._view = FleetView(models)

    async def start(self) -> None:
        """Asks the directory once, then keeps asking in the background."""
        await self._poll_once()
        self._poller = asyncio.create_task(self._poll(), name="fleet-directory")

    async def close(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self.links()))
        self._links.clear()
        self._retired.clear()

    def links(self) -> list[WorkerLink]:
        """Every link, retired ones included."""
        return [*self._links.values(), *self._retired]

    def adapter_loads(self) -> list[tuple[Member, AdapterLoad]]:
        """What every worker that serves adapters has told of them."""
        return [(link.member, link.adapters) for link in self.links() if link.adapters is not None]

    def link(self, member: Member) -> WorkerLink:
        """The current link to a worker that a plan names."""
        return self._links[member.worker_id]

    def introduce(self, chosen: Plan) -> None:
        """Has a worker that is to lend its prefix connect to the one that will ask for it; the one
        that decodes asks it for the prompt anyway.
        """
        lender = chosen.pull_from
        if lender is not None and lender != chosen.decode and lender.worker_id in self._links:
            self._links[lender.worker_id].lend_to(chosen.prefill[0])

    def prefill_links(self, members: Iterable[Member]) -> list[WorkerLink]:
        return [self._links[m.worker_id] for m in members if m.worker_id in self._links]

    def cluster(self) -> ClusterView:
        """Usable workers by role, as a plan wants them."""
        return self._view.cluster(self._links.values())

    @property
    def has_decode(self) -> bool:
        """True when at least one decode worker is connected."""
        return any(
            link.state is WorkerState.UP and link.member.role is not Role.PREFILL
            for link in self._links.values()
        )

    # What links report.

    def accept(self, link: WorkerLink, hello: pb.WorkerHello) -> str:
        others = [o for o in self.links() if o is not link and o.state is WorkerState.UP]
        decodes = link.member.role is not Role.PREFILL
        for other in others:
            names = ["model_digest", "vocab_size"]
            if decodes and other.member.role is not Role.PREFILL:
                names.append("block_size")
            for name in names:
                ours, theirs = getattr(other.hello, name), getattr(hello, name)
                if ours != theirs:
                    return f"its {name} is {theirs!r}, but this fleet's is {ours!r}"
        return ""

    def link_up(self, link: WorkerLink) -> None:
        up = [other for other in self._links.values() if other.state is WorkerState.UP]
        decode = [other.hello for other in up if other.member.role is not Role.PREFILL]
        # A gateway plans nothing before there is a decode worker.
        least = min(decode or [link.hello], key=lambda hello: hello.max_model_len)
        sizes = [least.block_size, *(other.hello.block_size for other in up)]
        self.facts = ModelFacts(
            model=link.hello.model,
            model_digest=link.hello.model_digest,
            block_size=least.block_size,
            block_sizes=tuple(dict.fromkeys(sizes)),
            max_model_len=least.max_model_len,
            vocab_size=link.hello.vocab_size,
        )
        self._learned(link)
        self._view.reset()
        self._on_change()

    def link_down(self, link: WorkerLink) -> None:
        self.num_links_lost += 1
        self._view.reset()
        if self._is_current(link):
            self.index.remove_worker(link.member.worker_id)
            self._draining.discard(link.member.worker_id)

    def load_changed(self, link: WorkerLink) -> None:
        worker_id = link.member.worker_id
        if self._is_current(link):
            self._learn(link)
            digest = link.load.kv_digest if link.knows_cache else None
            if digest is not None and not self._audit.check(worker_id, self.index, digest):
                self._distrust(link)
            self._view.changed(link)
        if link.load.draining:
            self._draining.add(worker_id)
        elif worker_id in self._draining:
            self._draining.discard(worker_id)
            self._on_change()
        self._on_load()

    def sent_changed(self, link: WorkerLink) -> None:
        if self._is_current(link):
            self._view.changed(link)

    def kv_events(self, link: WorkerLink, events: KvEvents) -> None:
        if self._is_current(link):
            self.index.apply(link.member.worker_id, events)

    def kv_gap(self, link: WorkerLink) -> None:
        if self._is_current(link):
            self._audit.gap(link.member.worker_id)
            self._distrust(link)

    def _distrust(self, link: WorkerLink) -> None:
        """Until it is repaired, the worker counts as holding nothing, and plans say so."""
        self.index.remove_worker(link.member.worker_id)
        link.distrust_events()
        self._view.changed(link)

    def _learn(self, link: WorkerLink) -> None:
        member, load = link.member, link.load
        self.models.observe(member.worker_id, member.role, load)
        for sample in load.transfers:
            other = self._links.get(sample.decode)
            if other is not None:
                nearness = Columns([link.view()]).near(0, Columns([other.view()]), 0)
                self.models.moved(member.worker_id, sample, nearness)
        self._learned(link)

    def _learned(self, link: WorkerLink) -> None:
        link.times = self.models.times(link.member.worker_id, link.member.role)

    # Following the directory.

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._config.poll_s)
            await self._poll_once()

    async def _poll_once(self) -> None:
        try:
            async with asyncio.timeout(self._config.directory_timeout_s):
                members = await self._directory.members()
        except Exception as error:
            # Whatever is wrong with the directory, the workers that we know still serve.
            _log.warning("the directory did not answer: %s: %s", type(error).__name__, error)
        else:
            self._reconcile(members)
        self._tick()

    def _reconcile(self, members: Sequence[Member]) -> None:
        listed = {member.worker_id: member for member in members}
        for worker_id, member in listed.items():
            current = self._links.get(worker_id)
            if current is None or current.member != member:
                self._replace(member, "a newer incarnation took its place")
        for worker_id, link in self._links.items():
            link.listed = worker_id in listed

    def _replace(self, member: Member, why: str) -> None:
        old = self._links.get(member.worker_id)
        if old is not None:
            self._retired.append(old)
            old.supersede(why)
            self.index.remove_worker(member.worker_id)
        if old is not None and old.member.incarnation != member.incarnation:
            # It may run elsewhere now, or as something else.
            self.models.forget(member.worker_id)
        self._draining.discard(member.worker_id)
        self._view.reset()
        link = WorkerLink(
            member,
            self,
            gateway_id=self._gateway_id,
            secret=self._secret,
            config=self._config,
            clock=self._clock,
        )
        self._links[member.worker_id] = link
        link.start()

    def _tick(self) -> None:
        for worker_id in self._audit.due():
            if worker_id in self._links:
                self._replace(self._links[worker_id].member, "its KV events were lost")
        for link in self.links():
            link.check_silence()
            link.end_if_idle()
        self._retired = [link for link in self._retired if not link.finished]
        for worker_id in [w for w, link in self._links.items() if link.finished]:
            del self._links[worker_id]
            self.index.remove_worker(worker_id)
            self.models.forget(worker_id)
            self._audit.forget(worker_id)
        self._view.reset()
        self._on_change()

    def _is_current(self, link: WorkerLink) -> bool:
        return self._links.get(link.member.worker_id) is link
