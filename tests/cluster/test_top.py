from __future__ import annotations

import asyncio
import re
import subprocess
import sys

import pytest
from tests.gateway.fakes import FakeFleet
from tests.gateway.serving import says, serving
from tests.gateway.test_tenants import ScriptedControl

from baton.cluster.top.reading import Reading, parse


def reading(text: str) -> Reading:
    return Reading(at_s=0.0, samples=parse(text, "g"), workers=[])


HISTOGRAM = """# TYPE t_seconds histogram
t_seconds_bucket{le="0.1"} 0
t_seconds_bucket{le="0.2"} 10
t_seconds_bucket{le="1.0"} 10
t_seconds_bucket{le="+Inf"} %d
"""


def test_quantiles_of_a_histogram() -> None:
    found = reading(HISTOGRAM % 10)
    assert found.quantile("t_seconds", 0.5) == pytest.approx(0.15)
    assert found.quantile("t_seconds", 1.0) == pytest.approx(0.2)
    # Above the last bound nothing more is known.
    assert reading(HISTOGRAM % 100).quantile("t_seconds", 0.95) == 1.0
    assert found.since(found).quantile("t_seconds", 0.5) is None
    assert found.quantile("other_seconds", 0.5) is None


def test_a_counter_that_fell_began_anew() -> None:
    before = reading('a_total{k="x"} 10\na_total{k="y"} 5\n')
    now = reading('a_total{k="x"} 3\na_total{k="y"} 7\na_total{k="z"} 4\n')
    since = now.since(before)
    assert since.total("a_total") == 3 + 2 + 4
    assert since.total("a_total", k="y") == 2
    assert now.values("a_total", "k") == ["x", "y", "z"]


async def test_the_table_is_that_of_a_real_gateway() -> None:
    """The command in a process of its own against a gateway on a real port."""
    async with serving(FakeFleet(says("hello there"))) as served:
        for _ in range(3):
            assert (await served.complete(max_tokens=20)).status_code == 200
        command = [sys.executable, "-m", "baton.cluster.cli", "top", "--url", served.url]
        running = await asyncio.create_subprocess_exec(
            *command, "--once", "--interval", "2", stdout=subprocess.PIPE
        )
        ended = asyncio.create_task(running.communicate())
        while not ended.done():
            assert (await served.complete(max_tokens=20)).status_code == 200
            await asyncio.sleep(0.1)
        output = (await ended)[0].decode()
    assert running.returncode == 0
    # the last request may be on its way when the command looks
    assert re.search(r"^[01] requests in flight, 0 wait in the gateway$", output, re.M)
    (rate, count) = re.search(r"^requests ok +([\d.]+)/s +(\d+)$", output, re.M).groups()  # type: ignore[union-attr]
    assert float(rate) > 0
    assert int(count) >= 3
    assert re.search(r"^TTFT p95 +\d.*m?s +\d.*m?s$", output, re.M)
    assert re.search(r"^requests failed +0.0/s +0$", output, re.M)
    assert re.search(r"^decode +\d of \d +- +\d+ +\d+ +\d+ +50%$", output, re.M)
    assert re.search(r"^d0 +decode ", output, re.M)
    assert "\x1b" not in output


async def test_several_gateways_are_added_up() -> None:
    """What each counted; pools and workers, which all know, once."""
    one, other = FakeFleet(says("hello")), FakeFleet(says("there"))
    control = ScriptedControl()
    async with serving(one, control=control) as a, serving(other, control=control) as b:
        for served, count in ((a, 2), (b, 3)):
            for _ in range(count):
                assert (await served.complete(max_tokens=20)).status_code == 200
        urls = [option for served in (a, b) for option in ("--url", served.url)]
        running = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "baton.cluster.cli", "top", "--once", "--interval", "0.1"),
            *urls,
            stdout=subprocess.PIPE,
        )
        output = (await running.communicate())[0].decode()
    assert running.returncode == 0
    assert "0 wait in the gateways" in output
    assert re.search(r"^requests ok +0.0/s +5$", output, re.M)
    # Workers, the target that both know, requests that run.
    assert re.search(r"^decode +1 of 1 +3 +0", output, re.M)


def test_a_gateway_that_is_not_there_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "baton.cluster.cli", "top", "--url", "http://127.0.0.1:9", "--once"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot reach http://127.0.0.1:9" in done.stderr
