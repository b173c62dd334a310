"""Who is a member of the cluster: leases that heartbeats renew, and each reader's last known view
of them.

Pure state with an injected clock; `directory_actor.py` puts it behind a Ray actor. The directory
keeps nothing on disk: after its own restart it is empty, members come back with their next
heartbeat, and readers keep what they knew meanwhile.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from baton.protos.clock import Clock, SystemClock
from baton.protos.errors import OverloadedError
from baton.protos.types import Member

MAX_FAILURES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayMember:
    """One gateway and where clients reach it. `http_url` has no path; `grpc_address` is empty
    without gRPC.
    """

    gateway_id: str
    incarnation: str
    http_url: str
    grpc_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailure:
    """Why a replica could not start, in the words of the error tree."""

    replica_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The directory's answer. `epoch` names one life of the directory; `version` counts its
    changes.

    `settled` is false until the directory is older than a lease: members of an earlier life may be
    missing. `targets` are the replicas that autoscaling asks for, by pool.
    """

    epoch: str
    version: int
    settled: bool
    workers: tuple[Member, ...]
    gateways: tuple[GatewayMember, ...]
    failures: tuple[StartFailure, ...]
    targets: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Lease:
    member: Member | GatewayMember
    expires_s: float


class MemberTable:
    """Members by id, each with a lease. A newer incarnation of an id replaces the older one at
    once.
    """

    def __init__(self, lease_s: float, max_members: int, clock: Clock | None = None) -> None:
        self._lease_s = lease_s
        self._max_members = max_members
        self._clock = clock or SystemClock()
        self._born_s = self._clock.now_s()
        self._epoch = uuid.uuid4().hex
        self._version = 0
        self._leases: dict[str, _Lease] = {}
        self._ended: dict[str, None] = {}
        self._failures: list[StartFailure] = []

    def heartbeat(self, member: Member | GatewayMember) -> None:
        """Registers or renews. OverloadedError when the table is full.

        An incarnation that has left or was replaced stays out, however late its heartbeat comes.
        """
        self._expire()
        if member.incarnation in self._ended:
            return
        key = member_key(member)
        known = self._leases.get(key)
        if known is None and len(self._leases) >= self._max_members:
            raise OverloadedError(
                f"the directory holds {self._max_members} members; raise directory.max_members"
            )
        if known is None or known.member != member:
            self._version += 1
        if known is not None and known.member.incarnation != member.incarnation:
            self._end(known.member.incarnation)
        self._leases[key] = _Lease(member, self._clock.now_s() + self._lease_s)

    def leave(self, incarnation: str) -> None:
        """Ends a membership at once; unknown incarnations are only remembered as ended."""
        self._end(incarnation)
        gone = [k for k, lease in self._leases.items() if lease.member.incarnation == incarnation]
        for key in gone:
            del self._leases[key]
            self._version += 1

    def report_failure(self, failure: StartFailure) -> None:
        """Keeps the latest reasons why replicas could not start, for whoever waits for them."""
        self._failures = [*self._failures, failure][-MAX_FAILURES:]
        self._version += 1

    def listing(self) -> Listing:
        self._expire()
        members = [lease.member for lease in self._leases.values()]
        return Listing(
            epoch=self._epoch,
            version=self._version,
            settled=self._clock.now_s() - self._born_s >= self._lease_s,
            workers=tuple(m for m in members if isinstance(m, Member)),
            gateways=tuple(m for m in members if isinstance(m, GatewayMember)),
            failures=tuple(self._failures),
        )

    def _expire(self) -> None:
        now_s = self._clock.now_s()
        for key in [k for k, lease in self._leases.items() if lease.expires_s <= now_s]:
            del self._leases[key]
            self._version += 1

    def _end(self, incarnation: str) -> None:
        self._ended[incarnation] = None
        while len(self._ended) > self._max_members:
            del self._ended[next(iter(self._ended))]


def member_key(member: Member | GatewayMember) -> str:
    """What two incarnations of the same worker or gateway have in common."""
    if isinstance(member, Member):
        return f"worker:{member.worker_id}"
    return f"gateway:{member.gateway_id}"


class MemberView:
    """A reader's last known workers. Never forgets one because the directory is away or has just
    restarted.
    """

    def __init__(self, lease_s: float, clock: Clock | None = None) -> None:
        self._lease_s = lease_s
        self._clock = clock or SystemClock()
        self._workers: dict[str, Member] = {}
        self.targets: Mapping[str, int] = {}
        self._updated_s: float | None = None

    def update(self, listing: Listing) -> None:
        """Takes the directory's word; until it has settled, only for what it adds."""
        self.targets = listing.targets
        listed = {m.worker_id: m for m in listing.workers}
        self._workers = listed if listing.settled else {**self._workers, **listed}
        self._updated_s = self._clock.now_s()

    @property
    def workers(self) -> Sequence[Member]:
        return tuple(self._workers.values())

    @property
    def age_s(self) -> float | None:
        """Seconds since the directory last answered; None when it never has."""
        return None if self._updated_s is None else self._clock.now_s() - self._updated_s
