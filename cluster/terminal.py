"""Baton's own words on the terminal, everybody else's in a log file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType


class Terminal:
    """Within `with`, file descriptors 1 and 2 (of this process and its children) write to
    `log_path`.

    Ray and its C++ core write to them directly, so redirecting Python's streams would not do.
    `say` still reaches the terminal.
    """

    def __init__(self, log_path: Path) -> None:
        self.log_path = log_path
        self._saved: list[int] = []

    def __enter__(self) -> Terminal:
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = [os.dup(1), os.dup(2)]
        log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, fd)
            os.close(saved)
        self._saved = []

    def say(self, text: str) -> None:
        """Writes one line for the user; a terminal that is gone is no reason to stop serving."""
        fd = self._saved[0] if self._saved else 1
        data = f"{text}\n".encode()
        try:
            while data:
                data = data[os.write(fd, data) :]
        except OSError:
            # A closed pipe (`baton serve | head`): the log has the line.
            with self.log_path.open("ab") as log:
                log.write(f"{text}\n".encode())
