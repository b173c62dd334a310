"""Deadlines, admission and configuration."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from baton.gateway.config import GatewayConfig
from baton.gateway.limits import Admission, Deadline
from baton.gateway.openai_schema import ChatBody, CompletionBody
from baton.protos.clock import ManualClock
from baton.protos.errors import (
    CancelledError,
    ConfigError,
    DeadlineError,
    OverloadedError,
    UnavailableError,
)


async def test_a_deadline_ends_its_block_with_its_cause() -> None:
    with pytest.raises(DeadlineError, match=r"within its 0\.01 s"):
        async with Deadline(0.01):
            await asyncio.sleep(5)
    deadline = Deadline(5.0)
    asyncio.get_running_loop().call_later(0.01, deadline.end, CancelledError("left"))
    asyncio.get_running_loop().call_later(0.01, deadline.end, UnavailableError("later"))
    with pytest.raises(CancelledError, match="left"):
        async with deadline:
            await asyncio.sleep(5)
    deadline.end(CancelledError("harmless after the end"))


async def test_a_deadline_that_was_ended_before_it_began() -> None:
    deadline = Deadline(5.0)
    deadline.end(UnavailableError("shutdown"))
    with pytest.raises(UnavailableError, match="shutdown"):
        async with deadline:
            await asyncio.sleep(5)


async def test_a_cancelled_task_stays_cancelled() -> None:
    async def work() -> None:
        async with Deadline(5.0):
            await asyncio.sleep(5)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_admission_counts_and_says_when_to_retry() -> None:
    clock = ManualClock()
    admission = Admission(2, clock)
    with admission.admit(Deadline(1)):
        with admission.admit(Deadline(1)):
            with pytest.raises(OverloadedError) as caught, admission.admit(Deadline(1)):
                pass
            assert caught.value.retry_after_s == 1.0
            clock.advance(1000.0)
        assert admission.in_flight == 1
        with admission.admit(Deadline(1)):
            with pytest.raises(OverloadedError) as caught, admission.admit(Deadline(1)):
                pass
            assert caught.value.retry_after_s == 51.0
    assert admission.in_flight == 0


async def test_drain_of_an_idle_gateway_is_at_once() -> None:
    admission = Admission(2, ManualClock())
    await admission.drain(100.0)
    assert admission.closing
    with pytest.raises(UnavailableError), admission.admit(Deadline(1)):
        pass


@pytest.mark.parametrize(
    "fields",
    [
        {"max_body_bytes": 0},
        {"max_concurrent_requests": -1},
        {"http_port": 70000},
        {"grpc_port": -1},
        {"default_timeout_s": 10.0, "max_timeout_s": 5.0},
        {"api_keys": ("a", "")},
        {"tls_cert_path": "x"},
        {"drain_grace_s": -1.0},
        {"max_prompt_tokens": 0},
    ],
)
def test_configuration_is_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        GatewayConfig(model_dir="m", **fields)
    assert caught.value.param in fields


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
    names = set(ChatBody.model_fields) | set(CompletionBody.model_fields)
    assert not [name for name in names if f"`{name}`" not in page]


def test_configuration_hides_its_keys_and_names_its_model() -> None:
    config = GatewayConfig(model_dir="/models/tiny", api_keys=("secret",))
    assert "secret" not in repr(config)
    assert config.model_names == ("tiny",)
    assert GatewayConfig(model_dir="m", served_model_names=("a", "b")).model_names == ("a", "b")
