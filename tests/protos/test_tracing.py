"""Traces that cannot be made are refused before anything starts."""

from __future__ import annotations

import importlib.util

import pytest

from baton.protos.errors import ConfigError
from baton.protos.tracing import check_tracing


def test_an_unknown_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier/pigeon")
    with pytest.raises(ConfigError, match=r"carrier/pigeon.*http/protobuf"):
        check_tracing()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"baton-serve\[otel\]"):
        check_tracing()
