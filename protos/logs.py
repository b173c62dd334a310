"""Log lines of every process: text for people, or JSON for collectors, each with what it is about.

A line's own fields travel beside its message: ``log.info("ended", extra=fields(request_id=...))``.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

from baton.protos.errors import ConfigError

# Prompts go here, which is silent unless a configuration asks for them.
PROMPT_LOGGER: Final = "baton-prompts"
MAX_PROMPT_CHARS: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsConfig:
    """How gateways and workers log, to their standard error.

    `level` info has a line for each request. `prompts`: with the first `MAX_PROMPT_CHARS` of its
    prompt, which otherwise is in no line. Raises ConfigError for prompts without such lines.
    """

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "warning"
    prompts: bool = False

    def __post_init__(self) -> None:
        if self.prompts and self.level not in ("debug", "info"):
            raise ConfigError(
                f"prompts is true, but level is {self.level}, which has no lines for requests: "
                "set it to info",
                param="prompts",
            )


def fields(**values: str | float | None) -> dict[str, Any]:
    """`extra` of a log call: what the line is about. Empty values are left out."""
    return {"baton_fields": {k: v for k, v in values.items() if v not in ("", None)}}


def start_logging(config: LogsConfig, service: str, instance: str) -> None:
    """Sets this process's logging up, once more if it was: Baton's own lines from `config.level`,
    those of libraries from warnings on. `service` and `instance` are in every JSON line.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(handler)
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter(service, instance) if config.format == "json" else _TextFormatter()
    )
    root.addHandler(handler)
    logging.getLogger("baton").setLevel(config.level.upper())
    # Above every level: nothing that others configure makes it speak.
    silent = logging.CRITICAL + 1
    logging.getLogger(PROMPT_LOGGER).setLevel(logging.INFO if config.prompts else silent)


class _Handler(logging.StreamHandler[Any]):
    """The one that `start_logging` set. What libraries say below a warning is left out, whatever
    they set their own loggers to.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.name.startswith("baton")
        return (ours or record.levelno >= logging.WARNING) and bool(super().filter(record))


class _JsonFormatter(logging.Formatter):
    """One object a line; times in UTC with microseconds."""

    def __init__(self, service: str, instance: str) -> None:
        super().__init__()
        self._process = {"service": service, "instance": instance}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
            **getattr(record, "baton_fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _TextFormatter(logging.Formatter):
    """The same for people: time, level, message, `key=value` for each field, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        found = getattr(record, "baton_fields", {})
        told = "".join(f" {key}={value}" for key, value in found.items())
        text = f"{_utc(record)} {record.levelname} {record.name}: {record.getMessage()}{told}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _utc(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.created % 1 * 1e6):06d}Z"
