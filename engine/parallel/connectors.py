"""KV connectors of ranks other than 0: worked by rank 0 over the connection of their reports.

`RemoteRank` and `RemoteConnector` are rank 0's side, `ConnectorServer` is the rank's. A message is
a JSON object: `op` says what, `id` joins a command with its `answer` or its push with its `done`.
"""

from __future__ import annotations

import base64
import itertools
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Final, Protocol

from baton.engine.kv_pool import KVPool
from baton.engine.parallel.links import RankLink
from baton.kvtransfer.connector import (
    Connector,
    ConnectorStatistics,
    Notice,
    PeerInfo,
    PeerKey,
)
from baton.kvtransfer.factory import make_connector
from baton.kvtransfer.group import Done, OnNotice
from baton.kvtransfer.layout import KVLayout
from baton.protos.errors import BatonError, PeerLostError, TransferError, error_from_code

# What takes longest: making a NIXL agent, or the first exchange with a peer.
ANSWER_TIMEOUT_S: Final = 120.0
# Connecting waits for the other side; several peers may come at once.
CONNECT_THREADS: Final = 4
# Out of the pool, into it, the disk and the shared tier: rank 0 asks each for one thing at a time.
TIER_THREADS: Final = 4
ANSWER: Final = "answer"
DONE: Final = "done"
NOTICE: Final = "notice"
OPS: Final = frozenset({ANSWER, DONE, NOTICE})


class AdapterReader(Protocol):
    """Reads an adapter's part of this rank, and keeps it under rank 0's key for it."""

    def read(self, key: int, ref: dict[str, Any]) -> None: ...


class RankMemory(Protocol):
    """Keeps this rank's part of blocks beyond its pool; the commands are `tiers_...`."""

    def do(self, message: dict[str, Any]) -> dict[str, Any]: ...


class RemoteRank:
    """A RankPool and a TierRank over a link. `take` gets what the rank says; `lose` ends what waits
    for it."""

    def __init__(self, link: RankLink) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._ids = itertools.count()
        # Guarded by the lock: who waits for an answer, whose push is under way.
        self._answers: dict[int, Future[dict[str, Any]]] = {}
        self._dones: dict[int, Done] = {}
        self._lost: TransferError | None = None
        self._on_notice: OnNotice | None = None
        self.statistics = ConnectorStatistics()

    def open(self, name: str, key: PeerKey, host: str, on_notice: OnNotice) -> Connector:
        self._on_notice = on_notice
        answer = self.call("open", name=name, key=_key_to_json(key), host=host)
        return RemoteConnector(self, _info_from_json(answer["info"]))

    def call(self, op: str, **said: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer. Raises what it answers with."""
        try:
            return self.begin(op, **said).result(ANSWER_TIMEOUT_S)
        except TimeoutError as error:
            raise TransferError(f"rank {self._link.rank} did not answer {op}") from error

    def begin(self, op: str, **said: Any) -> Future[dict[str, Any]]:
        """Sends a command; its answer comes, or what it answers with is raised there."""
        number, future = next(self._ids), Future[dict[str, Any]]()
        self._register(self._answers, number, future)
        self._send({"op": op, "id": number, **said})
        return future

    def post(self, done: Done, **said: Any) -> None:
        """Sends a push; `done` comes when the rank says so."""
        number = next(self._ids)
        self._register(self._dones, number, done)
        self._send({"op": "push", "id": number, **said})

    def tell(self, op: str, **said: Any) -> None:
        self._send({"op": op, **said})

    def take(self, message: Mapping[str, Any]) -> None:
        """On the watcher's thread."""
        if message["op"] == NOTICE and self._on_notice is not None:
            notice = Notice.from_bytes(base64.b64decode(message["notice"]))
            self._on_notice(_key_from_json(message["key"]), notice)
        elif message["op"] == ANSWER:
            with self._lock:
                waiting = self._answers.pop(message["id"], None)
            if waiting is not None and "error" in message:
                waiting.set_exception(_error_of(message["error"]))
            elif waiting is not None:
                waiting.set_result(dict(message))
        elif message["op"] == DONE:
            self.statistics = ConnectorStatistics(**message["statistics"])
            with self._lock:
                done = self._dones.pop(message["id"], None)
            if done is not None:
                done(_error_of(message["error"]) if "error" in message else None)

    def lose(self, error: BaseException) -> None:
        """The rank is gone, and with it what it was doing."""
        lost = PeerLostError(f"rank {self._link.rank} of this worker is lost: {error}")
        with self._lock:
            self._lost = lost
            answers, self._answers = self._answers, {}
            dones, self._dones = self._dones, {}
        for future in answers.values():
            future.set_exception(lost)
        for done in dones.values():
            done(lost)

    def _register(self, waiting: dict[int, Any], number: int, who: Any) -> None:
        with self._lock:
            if self._lost is not None:
                raise self._lost
            waiting[number] = who

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._link.tell(message)
        except OSError as error:
            # Whoever waits for it hears of the loss from the watcher.
            raise TransferError(f"rank {self._link.rank} takes no commands: {error}") from error


class RemoteConnector:
    """See `Connector` for the contract: that of another rank's pool."""

    def __init__(self, rank: RemoteRank, info: PeerInfo) -> None:
        self._rank = rank
        self._info = info

    def local_info(self) -> PeerInfo:
        return self._info

    def connect(self, peer: PeerInfo) -> None:
        self._rank.call("connect", peer=_info_to_json(peer))

    def disconnect(self, key: PeerKey) -> None:
        self._rank.call("disconnect", key=_key_to_json(key))

    def push(
        self,
        key: PeerKey,
        local_blocks: Sequence[int],
        remote_blocks: Sequence[int],
        notice: Notice,
        done: Done,
        *,
        skip_tokens: int = 0,
    ) -> None:
        self._rank.post(
            done,
            key=_key_to_json(key),
            local=list(local_blocks),
            remote=list(remote_blocks),
            notice=base64.b64encode(notice.to_bytes()).decode(),
            skip_tokens=skip_tokens,
        )

    def expect(self, delta: int) -> None:
        self._rank.tell("expect", delta=delta)

    def statistics(self) -> ConnectorStatistics:
        """As of the last push that ended."""
        return self._rank.statistics

    def close(self) -> None:
        try:
            self._rank.call("close")
        except TransferError:
            # The rank is gone, and its connector with it.
            return


class ConnectorServer:
    """The rank's side: does what rank 0 says, until the link ends. It reads adapters and moves
    blocks between tiers, too.

    `own_host`: where its connector listens, if not at rank 0's address.
    """

    def __init__(
        self,
        link: RankLink,
        pool: KVPool,
        adapters: AdapterReader | None,
        tiers: RankMemory,
        own_host: str = "",
    ) -> None:
        self._adapters = adapters
        self._tiers = tiers
        self._link = link
        self._own_host = own_host
        self._pool = pool
        self._connector: Connector | None = None
        self._connecting = ThreadPoolExecutor(CONNECT_THREADS, "connect")
        self._moving = ThreadPoolExecutor(TIER_THREADS, "rank-tiers")
        self._thread = threading.Thread(target=self._main, name="rank-kv", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """After the link has ended."""
        self._thread.join()
        self._connecting.shutdown()
        self._moving.shutdown()
        if self._connector is not None:
            self._connector.close()

    def _main(self) -> None:
        while (message := self._link.hear()) is not None:
            if message["op"] == "push":
                self._push(message)
            elif message["op"] == "expect":
                self._opened().expect(message["delta"])
            elif message["op"] in ("connect", "disconnect", "read_adapter"):
                self._connecting.submit(self._answer, message)
            elif message["op"].startswith("tiers_"):
                self._moving.submit(self._answer, message)
            else:
                self._answer(message)

    def _answer(self, message: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"op": ANSWER, "id": message["id"]}
        try:
            answer |= self._do(message)
        except Exception as error:
            answer["error"] = _error_to_json(error)
        self._tell(answer)

    def _do(self, message: dict[str, Any]) -> dict[str, Any]:
        match message["op"]:
            case "open":
                self._connector = make_connector(
                    message["name"],
                    self._pool.tensor,
                    self._pool.layout,
                    _key_from_json(message["key"]),
                    self._notice,
                    self._own_host or message["host"],
                )
                return {"info": _info_to_json(self._connector.local_info())}
            case "connect":
                self._opened().connect(_info_from_json(message["peer"]))
            case "disconnect":
                self._opened().disconnect(_key_from_json(message["key"]))
            case "read_adapter" if self._adapters is not None:
                self._adapters.read(message["key"], message["ref"])
            case "close":
                self._opened().close()
            case _:
                return self._tiers.do(message)
        return {}

    def _push(self, message: dict[str, Any]) -> None:
        number = message["id"]
        try:
            self._opened().push(
                _key_from_json(message["key"]),
                message["local"],
                message["remote"],
                Notice.from_bytes(base64.b64decode(message["notice"])),
                lambda error: self._pushed(number, error),
                skip_tokens=message["skip_tokens"],
            )
        except TransferError as error:
            self._pushed(number, error)

    def _pushed(self, number: int, error: TransferError | None) -> None:
        said = {} if error is None else {"error": _error_to_json(error)}
        statistics = asdict(self._opened().statistics())
        self._tell({"op": DONE, "id": number, "statistics": statistics, **said})

    def _notice(self, key: PeerKey, notice: Notice) -> None:
        text = base64.b64encode(notice.to_bytes()).decode()
        self._tell({"op": NOTICE, "key": _key_to_json(key), "notice": text})

    def _tell(self, message: Mapping[str, Any]) -> None:
        try:
            self._link.tell(message)
        except OSError:
            # Rank 0 is gone, and this rank is about to see it.
            return

    def _opened(self) -> Connector:
        if self._connector is None:
            raise TransferError("this rank's connector is not open")
        return self._connector


def _key_to_json(key: PeerKey) -> list[Any]:
    return [key.worker_id, key.incarnation, key.session]


def _key_from_json(said: Sequence[Any]) -> PeerKey:
    return PeerKey(*said)


def _info_to_json(info: PeerInfo) -> dict[str, Any]:
    """Of one rank: `ranks` does not travel."""
    return {
        "key": _key_to_json(info.key),
        "agent_metadata": base64.b64encode(info.agent_metadata).decode(),
        "layout": info.layout.to_json(),
        "pool_address": info.pool_address,
        "num_blocks": info.num_blocks,
        "device_id": info.device_id,
    }


def _info_from_json(said: Mapping[str, Any]) -> PeerInfo:
    return PeerInfo(
        key=_key_from_json(said["key"]),
        agent_metadata=base64.b64decode(said["agent_metadata"]),
        layout=KVLayout.from_json(said["layout"]),
        pool_address=said["pool_address"],
        num_blocks=said["num_blocks"],
        device_id=said["device_id"],
    )


def _error_to_json(error: BaseException) -> list[str]:
    code = error.code if isinstance(error, BatonError) else TransferError.default_code
    return [code, str(error) or type(error).__name__]


def _error_of(said: Sequence[str]) -> TransferError:
    """Whatever it was over there, here a transfer failed."""
    error = error_from_code(*said)
    return error if isinstance(error, TransferError) else TransferError(error.message)
