"""What the configurations of both kinds of workers have in common."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Final

from baton.engine.config import EngineConfig
from baton.kvtransfer.lmcache.config import AUTO, check_address
from baton.protos.logs import LogsConfig

# After a sender says that it has written everything, notices may be this late.
NOTICE_GRACE_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Times are seconds."""

    engine: EngineConfig
    worker_id: str
    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex)
    host: str = "127.0.0.1"
    # 0 takes any free port, which the directory publishes.
    port: int = 0
    model_name: str = ""
    # Of the machine, for routers that price the way between two workers; "" where nobody says.
    rack: str = ""
    # How KV travels; the same for both pools.
    connector: str = "nixl"
    # The LMCache server of that connector; auto: the one of the configuration's `lmcache` section.
    lmcache: str = AUTO
    # Shared by all workers of a cluster: who does not know it gets no access to this KV pool.
    secret: str = field(default="", repr=False)
    # Prompts queued here for other workers; beyond it: OverloadedError.
    max_queued: int = 1024
    # Prompts are started while less than this many steps' worth of tokens waits in the engine, so
    # that blocks are reserved at the receiver only while they are being computed. Prompts computed
    # for receivers that have no room yet count.
    window_steps: int = 2
    # A decode worker that does not say where to write for this long has its prompt refused.
    reserve_timeout_s: float = 20.0
    # A prefix that another worker has cached and that is not here by then is computed.
    pull_timeout_s: float = 5.0
    # A worker that is no longer reachable writes nothing after this long; blocks wait for it.
    lease_s: float = 30.0
    report_interval_s: float = 0.5
    # OpenTelemetry traces, by the OTEL_* environment variables.
    tracing: bool = False
    # Of the worker's other ranks; its own process sets its logging up itself.
    logs: LogsConfig = field(default_factory=LogsConfig)

    def __post_init__(self) -> None:
        if self.lmcache != AUTO:
            check_address("lmcache", self.lmcache)

    @property
    def wire(self) -> str:
        """The connector, as `make_connector` takes it."""
        return f"lmcache {self.lmcache}" if self.connector == "lmcache" else self.connector
