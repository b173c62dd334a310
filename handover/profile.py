"""A torch profiler trace of a live worker's steps. Nothing of it is there while nobody asks."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.protos import worker_pb2 as pb
from baton.protos.errors import (
    InvalidRequestError,
    OverloadedError,
    PayloadTooLargeError,
)
from baton.protos.proof import check_mac, join_nonces, make_mac, new_nonce, unsigned

MAX_SECONDS: Final = 60.0
MAX_STEPS: Final = 1000
MAX_TRACE_BYTES: Final = 256 << 20
_PIECE_BYTES: Final = 1 << 20
_ASKER: Final = "who asks for a profile"


class Recording:
    """Steps of one engine under torch's profiler; all of it on the engine's thread, because the
    profiler sees the thread that it was started on. Work on CUDA is in it, of every thread.
    """

    def __init__(self, max_steps: int) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        # A schedule that always records marks every step in the trace.
        self._profile = profile(activities=activities, schedule=lambda _: ProfilerAction.RECORD)
        self._max_steps = max_steps
        self.num_steps = 0
        self.ended: Future[None] = Future()

    def begin(self) -> None:
        self._profile.start()

    def after_step(self) -> None:
        if self.ended.done():
            return
        self.num_steps += 1
        if self.num_steps == self._max_steps:
            self.end()
        else:
            self._profile.step()

    def end(self) -> None:
        """Once more is harmless."""
        if not self.ended.done():
            self._profile.stop()
            self.ended.set_result(None)

    def write(self, path: Path) -> None:
        """A trace for https://ui.perfetto.dev and chrome://tracing; gzip by the file's name."""
        self._profile.export_chrome_trace(str(path))


class Profiler:
    """One recording at a time. `attach` gives the engine's thread who is told of its steps."""

    def __init__(self, loop: EngineLoop, attach: Callable[[Recording | None], None]) -> None:
        self._loop = loop
        self._attach = attach
        self._busy = False

    async def record(self, request: pb.ProfileRequest) -> AsyncIterator[pb.ProfileAnswer]:
        """The next steps, until `seconds` or `steps` are over. Raises InvalidRequestError,
        OverloadedError while another one is made, PayloadTooLargeError.
        """
        _check(request)
        if self._busy:
            raise OverloadedError(
                "this worker is being profiled already", retry_after_s=request.seconds
            )
        self._busy = True
        try:
            with tempfile.TemporaryDirectory(prefix="baton-profile-") as folder:
                path = Path(folder) / "trace.json.gz"
                recording = await self._run(request)
                await asyncio.to_thread(recording.write, path)
                for answer in _pieces(path, recording.num_steps):
                    yield answer
        finally:
            self._busy = False

    async def _run(self, request: pb.ProfileRequest) -> Recording:
        recording = Recording(request.steps)

        def begin(_: Engine) -> None:
            recording.begin()
            self._attach(recording)

        def end(_: Engine) -> None:
            self._attach(None)
            recording.end()

        await asyncio.wrap_future(self._loop.call(begin))
        try:
            # Not by a time-out around the future, which would cancel it.
            await asyncio.wait([asyncio.wrap_future(recording.ended)], timeout=request.seconds)
        finally:
            ending = self._loop.call(end)
        await asyncio.wrap_future(ending)
        return recording


class ProfileCall:
    """The worker's side of one `Profile` call, in the order of its methods."""

    def __init__(self, secret: str, worker_id: str) -> None:
        self._secret = secret
        self._mine = pb.Challenge(worker_id=worker_id, nonce=new_nonce())
        self._nonces = b""

    def challenge(self, theirs: pb.Challenge) -> pb.ProfileAnswer:
        """TransferError for a nonce that is not one."""
        mine = self._mine
        self._nonces = join_nonces(_ASKER, theirs.nonce, mine.worker_id, mine.nonce)
        return pb.ProfileAnswer(challenge=mine)

    def check(self, request: pb.ProfileRequest) -> None:
        """Raises AuthenticationError unless it proves the cluster's secret."""
        expected = make_mac(self._secret, "profile", self._nonces, unsigned(request))
        check_mac(request.mac, expected, here=self._mine.worker_id, there=_ASKER)


def _check(request: pb.ProfileRequest) -> None:
    if not 0 < request.seconds <= MAX_SECONDS:
        raise InvalidRequestError(
            f"seconds is {request.seconds:g}, but must be in (0, {MAX_SECONDS:g}]", param="seconds"
        )
    if not 1 <= request.steps <= MAX_STEPS:
        raise InvalidRequestError(
            f"steps is {request.steps}, but must be in [1, {MAX_STEPS}]", param="steps"
        )


def _pieces(path: Path, num_steps: int) -> list[pb.ProfileAnswer]:
    if (size := path.stat().st_size) > MAX_TRACE_BYTES:
        raise PayloadTooLargeError(
            f"the trace has {size} bytes, over {MAX_TRACE_BYTES}: ask for fewer steps"
        )
    data = path.read_bytes()
    pieces = [
        pb.ProfileAnswer(trace=data[i : i + _PIECE_BYTES]) for i in range(0, size, _PIECE_BYTES)
    ]
    pieces[-1].num_steps = num_steps
    return pieces
