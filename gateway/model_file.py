"""Learned time models on disk, so that a restarted gateway begins with what was known."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from baton.protos.errors import ConfigError
from baton.router.times import H100_8B, ModelTimes

_log = logging.getLogger(__name__)


def load_model_times(path: str) -> ModelTimes:
    """What was saved, or the times of 8B on one H100 where there is no such file.

    A file that cannot be read is logged, not fatal: models are learned again within a few steps.
    """
    if not path or not Path(path).exists():
        return H100_8B
    try:
        return ModelTimes.from_json(Path(path).read_text())
    except (OSError, ConfigError) as error:
        _log.error("%s holds no time models, so they are learned anew: %s", path, error)
        return H100_8B


def save_model_times(path: str, times: ModelTimes) -> None:
    """Replaces the file whole. What cannot be written is logged."""
    target = Path(path)
    draft = target.with_name(f"{target.name}.{os.getpid()}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(times.to_json())
        draft.replace(target)
    except OSError as error:
        _log.error("time models cannot be saved to %s: %s", path, error)
