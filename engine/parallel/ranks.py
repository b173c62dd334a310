"""The other ranks as rank 0 sees them: started, waited for, sent steps, watched, stopped."""

from __future__ import annotations

import secrets
import selectors
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import torch
from torch._C._distributed_c10d import TCPStore

from baton.engine.config import EngineConfig
from baton.engine.parallel.connectors import RemoteRank
from baton.engine.parallel.follower import FAILED
from baton.engine.parallel.hosts import RankHandle, RankHost
from baton.engine.parallel.links import (
    CONNECT_TIMEOUT_S,
    TOKEN_BYTES,
    RankLink,
    RankListener,
    RankSpec,
)
from baton.protos.errors import BatonError, DeadlineError, WorkerLostError, error_from_code

# Loading a large model from a slow disk.
START_TIMEOUT_S: Final = 1800.0
# A broken collective is felt here before the watcher has heard which rank broke it.
CAUSE_WAIT_S: Final = 2.0


class Ranks:
    """Ranks 1 to size - 1 of a group. One that fails or vanishes ends them all, for good.

    store: where the collectives of the group meet. pools: for KV connectors, in order.
    failure: what ended the group, or None.
    """

    def __init__(self, config: EngineConfig, host: RankHost) -> None:
        """Returns when all are connected. Raises the BatonError that one of them failed with."""
        self._size = config.tensor_parallel_size
        self.failure: BatonError | None = None
        self._changed = threading.Condition()
        # Guarded by the condition's lock, as is `failure`.
        self._states: dict[int, str] = {}
        self._callbacks: list[Callable[[BatonError], None]] = []
        self._closing = False
        self.store = TCPStore(
            host.address,
            0,
            self._size,
            is_master=True,
            timeout=timedelta(seconds=CONNECT_TIMEOUT_S),
            wait_for_workers=False,
        )
        self._handles: dict[int, RankHandle] = {}
        token = secrets.token_bytes(TOKEN_BYTES)
        listener = RankListener(host.address, token)
        try:
            for rank in range(1, self._size):
                self._handles[rank] = host.start(
                    RankSpec(
                        config=config,
                        rank=rank,
                        host=host.address,
                        port=listener.port,
                        store_port=self.store.port,
                        token=token,
                        num_threads=torch.get_num_threads(),
                    )
                )
            self._links = listener.accept(list(self._handles), self._check_started)
        except BaseException:
            self._stop_all()
            raise
        finally:
            listener.close()
        self.pools = [RemoteRank(link) for link in self._links]
        self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._watcher.start()

    def wait(self, state: str) -> None:
        """Until every rank has reported `state`. Raises `failure`, or DeadlineError."""
        end_s = time.monotonic() + START_TIMEOUT_S
        with self._changed:
            while self.failure is None:
                late = [rank for rank in self._handles if self._states.get(rank) != state]
                if not late:
                    return
                if not self._changed.wait(end_s - time.monotonic()):
                    raise DeadlineError(f"ranks {late} not {state} within {START_TIMEOUT_S:g} s")
            raise self.failure

    def send(self, message: bytes) -> None:
        """A step, to every rank. Raises OSError."""
        for link in self._links:
            link.send_step(message)

    def on_failure(self, callback: Callable[[BatonError], None]) -> None:
        """Calls it once when the group ends by a failure, from any thread; at once if it has."""
        with self._changed:
            failure = self.failure
            if failure is None:
                self._callbacks.append(callback)
        if failure is not None:
            callback(failure)

    def cause_of(self, error: Exception) -> BatonError:
        """What ended the group, where `error` is what a collective or a send made of that."""
        end_s = time.monotonic() + CAUSE_WAIT_S
        with self._changed:
            while self.failure is None and self._changed.wait(end_s - time.monotonic()):
                pass
            if self.failure is not None:
                return self.failure
        return WorkerLostError(f"the {self._size} ranks of the engine lost each other: {error}")

    def close(self) -> None:
        """Says goodbye and returns when all ranks are gone."""
        self._closing = True
        for link in self._links:
            link.end()
        self._stop_all()
        self._watcher.join()
        for link in self._links:
            link.close()

    def _stop_all(self) -> None:
        for handle in self._handles.values():
            handle.stop()

    def _check_started(self) -> None:
        for rank, handle in self._handles.items():
            ended = handle.ended()
            if ended is not None:
                raise WorkerLostError(f"rank {rank} of {self._size} did not start: {ended}")

    def _watch(self) -> None:
        """The watcher's thread: reads what the ranks report until the last one has gone."""
        with selectors.DefaultSelector() as selector:
            for link in self._links:
                selector.register(link.status, selectors.EVENT_READ, link)
            while selector.get_map():
                for key, _ in selector.select():
                    if not self._hear(key.data):
                        selector.unregister(key.fileobj)

    def _hear(self, link: RankLink) -> bool:
        """Takes in one report; whether there may be another."""
        try:
            status = link.hear()
        except (OSError, ValueError) as error:
            status = None if self._closing else {"state": FAILED, "code": "", "message": str(error)}
        if status is None:
            if not self._closing:
                self._fail(self._gone(link.rank))
            return False
        if "op" in status:
            self.pools[link.rank - 1].take(status)
            return True
        if status["state"] == FAILED:
            self._fail(self._failed(link.rank, status))
            return False
        with self._changed:
            self._states[link.rank] = status["state"]
            self._changed.notify_all()
        return True

    def _failed(self, rank: int, status: dict[str, Any]) -> BatonError:
        message = f"rank {rank} of {self._size}: {status['message']}"
        if not status["code"]:
            return WorkerLostError(message)
        return error_from_code(status["code"], message, param=status.get("param") or None)

    def _gone(self, rank: int) -> BatonError:
        """A connection ends a little before the process that held it is seen to have."""
        end_s = time.monotonic() + CAUSE_WAIT_S / 2
        while (ended := self._handles[rank].ended()) is None and time.monotonic() < end_s:
            time.sleep(0.01)
        return WorkerLostError(
            f"rank {rank} of {self._size} is gone: {ended or 'its connection ended'}"
        )

    def _fail(self, error: BatonError) -> None:
        with self._changed:
            if self.failure is not None:
                return
            self.failure = error
            callbacks, self._callbacks = self._callbacks, []
            self._changed.notify_all()
        for pool in self.pools:
            pool.lose(error)
        for callback in callbacks:
            callback(error)
