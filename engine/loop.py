"""The engine on one dedicated thread: commands in by a queue, step outputs out by a callback."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from baton.engine.engine import Engine
from baton.protos.errors import DeadlineError, UnavailableError
from baton.protos.types import GenerateRequest, StepOutput

T = TypeVar("T")


class EngineLoop:
    """Steps the engine while it has work, and sleeps otherwise.

    on_step: called on the loop's thread after every step that computed or reported something.
    on_death: called on the loop's thread, once, if a step, `on_step` or a self-check raises, or
        the engine fails between steps. From then on every call fails with that exception, as do
        the calls that were waiting.
    """

    def __init__(
        self,
        engine: Engine,
        on_step: Callable[[StepOutput], None],
        on_death: Callable[[BaseException], None],
    ) -> None:
        self._engine = engine
        self._on_step = on_step
        self._on_death = on_death
        self._wakeup = threading.Condition(threading.Lock())
        # Guarded by the condition's lock, as are the five below.
        self._commands: deque[_Command] = deque()
        self._stopping = False
        self._woken = False
        self._closed_by: BaseException | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        engine.on_wake(self._wake)

    def start(self) -> None:
        self._thread.start()
        self._engine.watch(self._fail)

    def call(self, fn: Callable[[Engine], T]) -> Future[T]:
        """Runs `fn(engine)` between two steps, in the order of the calls; from any thread.

        The future has its result or exception, and its callbacks run on the loop's thread. It
        fails with UnavailableError after stop(), and with the exception that the engine died of.
        """
        future: Future[T] = Future()
        with self._wakeup:
            if self._closed_by is None:
                self._commands.append(_Command(fn, future))
                self._wakeup.notify()
                return future
            closed_by = self._closed_by
        future.set_exception(closed_by)
        return future

    def call_recalled(
        self, prefix: GenerateRequest, fn: Callable[[Engine], T], *, near: bool = False
    ) -> Future[T]:
        """As `call`, once `Engine.recall` has brought what slower tiers have of the prompt: not in
        the order of the calls, and never where the engine ends before.
        """
        future: Future[T] = Future()

        def begin(engine: Engine) -> None:
            engine.recall(prefix, lambda: _Command(fn, future).run(engine), near=near)

        def tell(begun: Future[None]) -> None:
            if (error := begun.exception()) is not None and not future.done():
                future.set_exception(error)

        self.call(begin).add_done_callback(tell)
        return future

    def stop(self, timeout_s: float = 60.0) -> None:
        """Runs the commands that came before it, ends the thread and waits for it.

        The engine keeps its requests and stays the caller's to close. Raises DeadlineError if a
        step does not end within `timeout_s`.
        """
        with self._wakeup:
            self._stopping = True
            if self._closed_by is None:
                self._closed_by = UnavailableError("the engine loop was stopped")
            self._wakeup.notify()
        if not self._thread.ident:
            self._fail_commands(UnavailableError("the engine loop was never started"))
        elif self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise DeadlineError(f"the engine's step did not end within {timeout_s} s")

    def _main(self) -> None:
        try:
            while self._run_once():
                pass
        # Whatever it was, those who wait must hear of it: nobody else sees this thread's end.
        except BaseException as error:
            with self._wakeup:
                self._closed_by = error
            self._fail_commands(error)
            self._on_death(error)

    def _run_once(self) -> bool:
        """Commands, then a step. Whether to go on."""
        engine = self._engine
        commands, stopping = self._take_commands(wait=not engine.has_work())
        for command in commands:
            command.run(engine)
        if stopping:
            return False
        if engine.has_work():
            output = engine.step()
            if output.outputs or output.num_prefill_tokens or output.num_decode_tokens:
                self._on_step(output)
        return True

    def _take_commands(self, *, wait: bool) -> tuple[deque[_Command], bool]:
        if wait and self._engine.config.self_check:
            self._engine.check_integrity()
        with self._wakeup:
            while wait and not (self._commands or self._stopping or self._failure or self._woken):
                if not self._wakeup.wait(self._engine.idle_s):
                    break
            self._woken = False
            if self._failure is not None and not self._stopping:
                raise self._failure
            commands, self._commands = self._commands, deque()
            return commands, self._stopping

    def _fail(self, error: BaseException) -> None:
        with self._wakeup:
            self._failure = error
            self._wakeup.notify()

    def _wake(self) -> None:
        """The engine has work that no command brought."""
        with self._wakeup:
            self._woken = True
            self._wakeup.notify()

    def _fail_commands(self, error: BaseException) -> None:
        with self._wakeup:
            commands, self._commands = self._commands, deque()
        for command in commands:
            if command.future.set_running_or_notify_cancel():
                command.future.set_exception(error)


class _Command:
    """A function to run on the engine, and who waits for it."""

    __slots__ = ("fn", "future")

    def __init__(self, fn: Callable[[Engine], Any], future: Future[Any]) -> None:
        self.fn = fn
        self.future = future

    def run(self, engine: Engine) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.fn(engine)
        # All of it belongs to whoever asked; the loop goes on to the next command.
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
