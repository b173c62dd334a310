"""Ends what `baton serve` started, however it ended itself: a small process that outlives it.

Ray ends most of its processes when the one that started it dies, but not all: after a SIGKILL its
agents were still there a minute later. All of them keep log files of the run's private directory
open; the reaper waits for its standard input to close, ends every process that does so, and removes
the directory. It is run as a file of its own and imports nothing but the standard library.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

# What the reaper may be told before its input ends; nothing means that its owner was killed.
ORDERLY = b"o"
KEEP = b"k"
# Ray's processes get this long to end by themselves after an orderly stop.
GRACE_S = 3.0
DEADLINE_S = 15.0
POLL_S = 0.05
# A process that is just being started may be missed once.
EMPTY_SCANS = 4


class Reaper:
    """The side of `baton serve`. Start it before Ray, and `finish` it after; dying counts as
    finishing.
    """

    def __init__(self, state_dir: Path) -> None:
        import subprocess

        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(state_dir), str(os.getpid())],
            stdin=subprocess.PIPE,
            # Ctrl-C in a terminal reaches every process of the session.
            start_new_session=True,
        )

    def finish(self, keep_directory: bool) -> None:
        """Returns when nothing is left. `keep_directory` leaves the logs in place."""
        if self._process.stdin is not None:
            self._process.stdin.write(ORDERLY + KEEP if keep_directory else ORDERLY)
            self._process.stdin.close()
        self._process.wait(DEADLINE_S + GRACE_S + 5.0)


def processes_of(directory: str) -> set[int]:
    """Ids of the processes with an open file below `directory`; empty where there is no /proc."""
    prefix = directory.rstrip("/") + "/"
    found = set()
    for entry in os.scandir("/proc") if os.path.isdir("/proc") else ():
        if not entry.name.isdigit():
            continue
        try:
            files = os.listdir(f"/proc/{entry.name}/fd")
            if any(os.readlink(f"/proc/{entry.name}/fd/{f}").startswith(prefix) for f in files):
                found.add(int(entry.name))
        except OSError:
            # It has ended, has just closed the file, or belongs to somebody else.
            continue
    return found


def reap(directory: str, owner: int, grace_s: float) -> None:
    """Waits `grace_s` for the run's processes to end, then kills those that are left."""
    began_s = time.monotonic()
    spared = {owner, os.getpid()}
    empty_scans = 0
    while empty_scans < EMPTY_SCANS and (elapsed_s := time.monotonic() - began_s) < DEADLINE_S:
        left = processes_of(directory) - spared
        empty_scans = 0 if left else empty_scans + 1
        for pid in left if elapsed_s >= grace_s else ():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(POLL_S)


def main() -> None:
    """The reaper's own process: `reaper.py DIRECTORY OWNER`, let go by the end of its input."""
    directory, owner = sys.argv[1], int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = sys.stdin.buffer.read()
    reap(directory, owner, GRACE_S if ORDERLY in told else 0.0)
    if KEEP not in told:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
