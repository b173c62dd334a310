"""Log lines: what is in them, and what is never in them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from baton.protos.errors import ConfigError
from baton.protos.logs import PROMPT_LOGGER, LogsConfig, fields, start_logging

log = logging.getLogger("baton.of_a_test")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root, loggers = logging.getLogger(), ("baton", PROMPT_LOGGER)
    handlers, levels = list(root.handlers), [logging.getLogger(n).level for n in loggers]
    yield
    root.handlers[:] = handlers
    for name, level in zip(loggers, levels, strict=True):
        logging.getLogger(name).setLevel(level)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_have_the_process_the_fields_and_the_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):  # The second replaces the first.
        start_logging(LogsConfig(format="json", level="info"), "baton-decode", "decode-1")
    log.info("request %s", "ended", extra=fields(request_id="a", adapter="", seconds=0.0))
    log.debug("not this one")
    library = logging.getLogger("a_library")
    library.setLevel(logging.INFO)
    library.info("nor this one")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it failed")
    first, second = lines(capsys.readouterr().err)
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "logger": "baton.of_a_test",
        "message": "request ended",
        "service": "baton-decode",
        "instance": "decode-1",
        "request_id": "a",
        "seconds": 0.0,
    }
    assert "two\nlines" in second["error"]


def test_text_lines_have_the_fields_too(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(LogsConfig(), "baton-gateway", "g")
    log.warning("slow", extra=fields(request_id="a"))
    log.info("not this one")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING baton.of_a_test: slow request_id=a")


def test_prompts_are_logged_only_where_they_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = logging.getLogger(PROMPT_LOGGER)
    start_logging(LogsConfig(format="json", level="debug"), "s", "i")
    prompts.critical("prompt", extra=fields(prompt="secret"))
    assert capsys.readouterr().err == ""
    start_logging(LogsConfig(format="json", level="info", prompts=True), "s", "i")
    prompts.info("prompt", extra=fields(prompt="secret"))
    assert lines(capsys.readouterr().err)[0]["prompt"] == "secret"
    with pytest.raises(ConfigError, match="set it to info") as caught:
        LogsConfig(prompts=True)
    assert caught.value.param == "prompts"
