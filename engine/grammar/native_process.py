"""A process for native code that may hang or crash: asked one thing at a time, killed when late."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

from baton.protos.errors import GrammarError, UnavailableError

# Importing the library and reading a tokenizer take seconds; no grammar's limit pays for that.
START_LIMIT_S: Final = 120.0


class NativeProcess:
    """Runs `python -m module FD arguments...`, started when first asked and again after a kill.

    The child says ("ready", "") and then answers each message with ("ok", value) or
    ("error", reason).
    """

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self._command = [sys.executable, "-m", module]
        self._arguments = list(arguments)
        self._lock = threading.Lock()
        self._link: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def ask(self, message: Any, limit_s: float) -> Any:
        """The answer. Raises GrammarError for a refusal, a crash, or none within `limit_s`."""
        with self._lock:
            link = self._ready_link()
            try:
                link.send(message)
                if not link.poll(limit_s):
                    self._kill()
                    raise GrammarError(
                        f"it takes more than {limit_s:g} s to compile", reason="too_complex"
                    )
                kind, value = link.recv()
            except (EOFError, OSError) as error:
                self._kill()
                raise GrammarError("it makes the compiler crash", reason="too_complex") from error
            if kind == "error":
                raise GrammarError(value)
            return value

    def close(self) -> None:
        """Ends the process; whoever is asking it gets a refusal at once."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._kill()

    def _ready_link(self) -> Connection:
        if self._closed:
            raise UnavailableError("the engine is closing")
        if self._link is not None and self._process is not None and self._process.poll() is None:
            return self._link
        self._kill()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno()), *self._arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # It compiles for a CPU; a device's memory is not its business.
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )
        link = Connection(ours.detach())
        self._link = link
        # close() may have come between the first look and the start, with nothing to kill then.
        if self._closed:
            self._kill()
            raise UnavailableError("the engine is closing")
        try:
            if not link.poll(START_LIMIT_S):
                raise UnavailableError(f"{self._command[-1]} was not ready in {START_LIMIT_S:g} s")
            link.recv()
        except (EOFError, OSError, UnavailableError) as error:
            self._kill()
            raise UnavailableError(f"{self._command[-1]} could not start: {error}") from error
        return link

    def _kill(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
