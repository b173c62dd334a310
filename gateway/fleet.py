"""This gateway's side of the cluster: plans, submits, and requests that outlive their worker."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

from baton.gateway.fleet_config import Directory, FleetConfig, StaticDirectory
from baton.gateway.fleet_generation import Generation, TokenChunk
from baton.gateway.fleet_planner import Planner
from baton.gateway.fleet_roster import ModelFacts, Roster
from baton.gateway.fleet_track import FleetStatistics, Track, route_request, worth_replaying
from baton.gateway.fleet_waiting import WaitingRoom
from baton.gateway.request_trace import log_replay
from baton.gateway.tenants import EVERYBODY
from baton.protos.adapters import AdapterLoad
from baton.protos.clock import Clock, SystemClock
from baton.protos.errors import (
    BatonError,
    DeadlineError,
    OverloadedError,
    UnavailableError,
    WorkerLeavingError,
)
from baton.protos.tracing import Tracing
from baton.protos.types import FinishReason, GenerateRequest, Member
from baton.router.admission import TenantStatistics
from baton.router.admission_config import AdmissionConfig, TenantLimits
from baton.router.config import RouterConfig
from baton.router.holding import start_wait_s
from baton.router.plan import Plan, RouteRequest
from baton.router.scaling_signals import Demand
from baton.router.view import ClusterView, WorkerView

__all__ = [
    "Directory",
    "Fleet",
    "FleetConfig",
    "FleetStatistics",
    "Generation",
    "ModelFacts",
    "StaticDirectory",
    "TokenChunk",
]

# Reports that free a place come in bursts: those that wait are planned again once for each burst.
_PUMP_S = 0.005


class Fleet:
    """Plans, submits, streams and replays; `docs/interfaces.md` is the contract.

    A generation is owned by its decode worker while that worker lives and by the fleet otherwise:
    when a worker is lost or refuses, the fleet submits what remains of the request elsewhere, at
    most `max_replays` times, and the consumer sees one uninterrupted stream. Where no worker is
    usable it waits `no_worker_wait_s`. Belongs to one event loop.
    """

    def __init__(
        self,
        directory: Directory,
        router: RouterConfig,
        *,
        gateway_id: str,
        secret: str = "",
        clock: Clock | None = None,
        config: FleetConfig | None = None,
        rng: random.Random | None = None,
        admission: AdmissionConfig | None = None,
        tenants: Sequence[TenantLimits] = (),
        tracing: Tracing | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._config = config or FleetConfig()
        self.tracing = tracing
        rng = rng or random.Random()
        self.planner = Planner(router, self._config, self._clock, rng, tracing)
        self._roster = Roster(
            directory,
            self._workers_changed,
            self._pump_soon,
            gateway_id=gateway_id,
            secret=secret,
            config=self._config,
            clock=self._clock,
            models=self.planner.models,
            audit=self.planner.audit,
        )
        self._room = WaitingRoom(
            admission or AdmissionConfig(), tenants, self._clock, Generation.fail
        )
        self._missing: UnavailableError | None = None
        self._pump_timer: asyncio.TimerHandle | None = None
        self._tracks: dict[Generation, Track] = {}
        self._parked: dict[Generation, None] = {}
        self._changed = asyncio.Event()
        self._closed = False
        self._num_requests = 0
        self._num_submitted = 0
        self._num_replayed = 0

    async def start(self) -> None:
        """Begins to connect; returns without waiting for workers (see `wait_ready`)."""
        await self._roster.start()

    async def close(self) -> None:
        """Ends every generation with UnavailableError and every link."""
        self._closed = True
        for generation in list(self._tracks):
            generation.fail(UnavailableError("this gateway is shutting down"))
        self._room.close()
        if self._pump_timer is not None:
            self._pump_timer.cancel()
        await self._roster.close()
        self.planner.close()

    @property
    def ready(self) -> bool:
        """True when a decode worker is connected, or one would be started for a request."""
        return self._roster.has_decode or self._config.wake_wait_s > 0

    async def wait_ready(self, timeout_s: float) -> None:
        """Returns when `ready`. Raises UnavailableError, listing the workers, after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ready:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            views = self.workers()
            known = ", ".join(f"{w.member.worker_id} {w.state} ({w.detail})" for w in views)
            raise UnavailableError(
                f"no decode worker after {timeout_s} s; known: {known or 'none'}"
            ) from None

    @property
    def model(self) -> ModelFacts:
        """Raises UnavailableError until the first worker has said hello."""
        if self._roster.facts is None:
            raise UnavailableError("no worker has connected yet")
        return self._roster.facts

    def workers(self) -> list[WorkerView]:
        """Every known worker, with those that are not usable and why."""
        return [link.view() for link in self._roster.links()]

    def adapters(self) -> list[tuple[Member, AdapterLoad]]:
        """What every worker that serves adapters has told of them."""
        return self._roster.adapter_loads()

    def tenants(self) -> list[TenantStatistics]:
        """Every tenant that has sent a request or is configured."""
        return self._room.statistics()

    def demand(self) -> Demand:
        """What has reached this gateway since the last call: the pools are sized by it."""
        return self.planner.with_times(self._room.demand())

    def statistics(self) -> FleetStatistics:
        return FleetStatistics(
            num_generations=len(self._tracks),
            num_waiting=self._room.num_waiting,
            num_parked=len(self._parked),
            num_submitted=self._num_submitted,
            num_replayed=self._num_replayed,
            num_links_lost=self._roster.num_links_lost,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError unless links, tracks and the index agree with each other."""
        running = {id(track.link) for track in self._tracks.values() if track.link is not None}
        for link in self._roster.links():
            assert not link.num_live or id(link) in running, "a link runs what nobody tracks"
        num_live = sum(link.num_live for link in self._roster.links())
        num_here = len(self._parked) + self._room.num_waiting
        assert num_live + num_here == len(self._tracks), "a generation is nowhere"
        self._room.check_integrity()
        self._roster.index.check_integrity()

    def generate(
        self,
        request: GenerateRequest,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        stick_to: str | None = None,
        tenant: str = EVERYBODY,
        ttft_s: float | None = None,
    ) -> Generation:
        """Plans and submits when it is the `tenant`'s turn and a worker can begin soon; everything
        that goes wrong later is raised by the iterator.

        `stick_to` names the decode worker that already holds the prompt; where it is gone the
        request is planned as any other, and either way it does not wait. Raises OverloadedError
        where the request cannot be served, or not with its first token within `ttft_s`, and
        UnavailableError after `close`.
        """
        if self._closed:
            raise UnavailableError("this gateway is shutting down")
        if len(self._tracks) >= self._config.max_generations:
            raise OverloadedError(f"this gateway serves {len(self._tracks)} sequences already")
        self._num_requests += 1
        generation = Generation(
            request,
            self,
            deadline_s=None if timeout_s is None else self._clock.now_s() + timeout_s,
            traceparent=traceparent,
            stick_to=stick_to,
        )
        if stick_to is None:
            first_s = min(math.inf if s is None else s for s in (timeout_s, ttft_s))
            self._room.enter(generation, tenant, self._clock.now_s() + first_s)
        else:
            self._room.pass_by(generation, tenant)
        last = self.planner.sessions.last(request.session)
        track = self._tracks[generation] = Track(self._num_requests, last_worker=last)
        if timeout_s is not None:
            loop = asyncio.get_running_loop()
            track.deadline = loop.call_later(timeout_s, self._expired, generation, timeout_s)
        if stick_to is not None:
            self._place(generation, track)
        elif self._missing is None:
            self._pump()
        else:
            self._give_up_later(generation, track, self._missing)
        return generation

    # What generations report.

    def first_token(self, generation: Generation) -> None:
        self.planner.first_token(generation)
        self._roster.index.settle(generation)
        for link in self._tracks[generation].prefill_links:
            link.in_flight.remove(id(generation))

    def attempt_failed(self, generation: Generation, error: BatonError) -> None:
        track = self._tracks[generation]
        track.detach(generation)
        self._roster.index.settle(generation)
        request = generation.request
        num_output = len(request.output_token_ids) + generation.num_received
        if num_output >= request.sampling.max_tokens:
            # Everything came, only the word that it was all did not.
            generation.finish(FinishReason.LENGTH, None)
            return
        if not worth_replaying(error) or generation.num_replays >= self._config.max_replays:
            generation.fail(error)
            return
        decode = generation.plan.decode
        track.failed_by[decode.worker_id] = decode.incarnation
        track.last_error = error
        # It leaves, but still serves what it has computed: the next worker fetches that from it.
        track.kv_at = decode if isinstance(error, WorkerLeavingError) else None
        generation.num_replays += 1
        self._num_replayed += 1
        log_replay(generation, error)
        self._place(generation, track)

    def ended(self, generation: Generation) -> None:
        track = self._tracks.pop(generation)
        self._room.ended(generation)
        self._unpark(generation, track)
        self.planner.ended(generation)
        if track.deadline is not None:
            track.deadline.cancel()
        if track.link is not None:
            track.link.abort(track.handle)
        track.detach(generation)
        self._roster.index.settle(generation)
        self._pump_soon()

    # Whose turn it is.

    def _pump(self) -> None:
        """Sends the next requests, as long as a worker can begin them soon."""
        while (generation := self._room.head()) is not None:
            track, view = self._tracks[generation], self._roster.cluster()
            try:
                route = self._route(generation, track, view)
                chosen = self.planner.plan(view, self._roster.index, route)
                self._set_missing(None)
                error = self._room.too_late(generation, chosen.ttft_s)
                if error is not None:
                    generation.fail(error)
                    continue
                wait_s = start_wait_s(view, chosen, route)
                if wait_s > self._room.hold_s:
                    return
                self._submit(generation, track, chosen)
            except UnavailableError as missing:
                self._set_missing(missing)
                return
            except OverloadedError:
                return
            self._room.started(generation, chosen.num_cached_tokens, chosen.ttft_s - wait_s)

    def _pump_soon(self) -> None:
        """Once for all that happens in a moment: a plan costs more than a message."""
        if self._pump_timer is None and self._room.num_waiting and not self._closed:
            loop = asyncio.get_running_loop()
            self._pump_timer = loop.call_later(_PUMP_S, self._pump_now)

    def _pump_now(self) -> None:
        self._pump_timer = None
        self._pump()

    def _set_missing(self, missing: UnavailableError | None) -> None:
        """While there is no worker at all, requests wait as long as `worker_wait_s` only."""
        before, self._missing = self._missing, missing
        if missing is None and before is None:
            return
        for generation in self._room.waiting() if missing is None or before is None else ():
            track = self._tracks[generation]
            if missing is None:
                self._unpark(generation, track)
            else:
                self._give_up_later(generation, track, missing)

    # Attempts.

    def _place(self, generation: Generation, track: Track) -> None:
        view = self._roster.cluster()
        try:
            route = self._route(generation, track, view)
            chosen = self.planner.plan(view, self._roster.index, route)
            self._submit(generation, track, chosen)
        except (UnavailableError, OverloadedError) as error:
            self._park(generation, track, error)

    def _submit(self, generation: Generation, track: Track, chosen: Plan) -> None:
        link = self._roster.link(chosen.decode)
        handle = link.submit(generation, track.with_kv(chosen))
        self._roster.introduce(chosen)
        self._unpark(generation, track)
        self._num_submitted += 1
        generation.planned(chosen)
        self.planner.submitted(generation, chosen)
        track.link, track.handle = link, handle
        track.prefill_links = self._roster.prefill_links(chosen.prefill[:1])
        track.count_in_flight(generation, chosen, self._clock.now_s())
        track.promise(self._roster.index, generation)

    def _route(self, generation: Generation, track: Track, view: ClusterView) -> RouteRequest:
        # Hashing a long prompt for an empty index would be for nothing.
        hashed = bool(self._roster.index)
        return route_request(generation, track, view, self.model.block_sizes, hashed=hashed)

    # Waiting for a worker.

    def _park(self, generation: Generation, track: Track, error: BatonError) -> None:
        refused = track.last_error or error
        if isinstance(refused, OverloadedError) and not generation.num_received:
            # Nobody waits for this stream's next token yet: better an honest 429 than a queue.
            generation.fail(refused)
            return
        if track.park_timer is None:
            track.parked_s = self._clock.now_s()
            self._parked[generation] = None
            self._give_up_later(generation, track, error)

    def _give_up_later(self, generation: Generation, track: Track, error: BatonError) -> None:
        if track.park_timer is None:
            track.park_timer = asyncio.get_running_loop().call_later(
                self._config.worker_wait_s, self._gave_up, generation, error
            )

    def _unpark(self, generation: Generation, track: Track) -> None:
        self._parked.pop(generation, None)
        if track.park_timer is not None:
            track.park_timer.cancel()
            track.park_timer = None

    def _workers_changed(self) -> None:
        self._changed.set()
        self.planner.tick()
        for generation in list(self._parked):
            track = self._tracks[generation]
            if self._clock.now_s() - track.parked_s >= self._config.poll_s:
                # Who refused a while ago may take it now, and there is nobody else.
                track.failed_by.clear()
            self._place(generation, track)
        self._pump()

    def _gave_up(self, generation: Generation, error: BatonError) -> None:
        wait_s = self._config.worker_wait_s
        generation.fail(
            UnavailableError(f"no worker became available within {wait_s} s: {error.message}")
        )

    def _expired(self, generation: Generation, timeout_s: float) -> None:
        generation.fail(
            DeadlineError(
                f"request {generation.request.request_id} did not finish within {timeout_s} s "
                f"({generation.num_received} tokens were generated)"
            )
        )
