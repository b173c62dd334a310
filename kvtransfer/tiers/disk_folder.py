"""Which folder a process keeps its blocks in: one of its own, left by another if it fits."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Final

from baton.protos.errors import ConfigError

# Processes that share a root; a worker each, so far more than a machine has.
_MAX_FOLDERS: Final = 256
_FORMAT: Final = "baton-kv-blocks-1"
_LABEL: Final = "blocks.json"
_LOCK: Final = "lock"


def claim_folder(root: Path, fingerprint: str) -> tuple[Path, int]:
    """A folder under `root` that no living process has, and the descriptor that keeps it so.

    One with this fingerprint's blocks if there is one. Else a new one, or one that holds blocks of
    another fingerprint, which are of no use to this process and removed. Raises ConfigError.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        # One process at a time, or each would find that the others hold what it could have.
        with open(root / _LOCK, "w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            held = [claimed for folder in _folders(root) if (claimed := _lock(folder)) is not None]
            try:
                return _choose(root, fingerprint, held)
            finally:
                for _, lock in held:
                    os.close(lock)
    except OSError as error:
        raise ConfigError(
            f"disk_path is {str(root)!r}, but it cannot be used: {error}", param="disk_path"
        ) from error


def _choose(root: Path, fingerprint: str, held: list[tuple[Path, int]]) -> tuple[Path, int]:
    """Takes one out of `held`, or makes one."""
    fitting = [one for one in held if _fingerprint(one[0]) == fingerprint]
    if fitting:
        held.remove(fitting[0])
        return fitting[0]
    if held:
        found = held.pop(0)
        _clear(found[0])
    else:
        found = _make(root)
    label = json.dumps({"format": _FORMAT, "fingerprint": fingerprint})
    aside = found[0] / f"{_LABEL}.tmp"
    aside.write_text(label)
    aside.rename(found[0] / _LABEL)
    return found


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.glob("worker-*") if (p / _LOCK).is_file())


def _make(root: Path) -> tuple[Path, int]:
    for number in range(_MAX_FOLDERS):
        folder = root / f"worker-{number}"
        folder.mkdir(exist_ok=True)
        (folder / _LOCK).touch()
        claimed = _lock(folder)
        if claimed is not None:
            return claimed
    raise ConfigError(
        f"disk_path is {str(root)!r}, where {_MAX_FOLDERS} processes have their folders already",
        param="disk_path",
    )


def _lock(folder: Path) -> tuple[Path, int] | None:
    """None while another process has it; the kernel frees it when that process is gone."""
    lock = os.open(folder / _LOCK, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return folder, lock


def _fingerprint(folder: Path) -> str | None:
    try:
        label = json.loads((folder / _LABEL).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(label, dict) or label.get("format") != _FORMAT:
        return None
    found = label.get("fingerprint")
    return found if isinstance(found, str) else None


def _clear(folder: Path) -> None:
    """Only what this module's folders have: a label, and blocks by the first byte of their name."""
    (folder / _LABEL).unlink(missing_ok=True)
    for number in range(256):
        part = folder / f"{number:02x}"
        if part.is_dir():
            shutil.rmtree(part)
