from __future__ import annotations

import asyncio
import itertools
import json
import random
from array import array
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cluster.fake_server import FakeServer

from baton.cluster.bench.load import Run, find_target, offer
from baton.cluster.bench.statistics import figures, percentile, summarise
from baton.cluster.bench.wire import Pool, Sample, encode_request
from baton.cluster.bench.workload import JobMaker, Span, Vocabulary, Workload
from baton.cluster.cli import baton
from baton.cluster.client import Endpoint
from baton.protos.errors import BatonError, ConfigError


def workload(**changes: object) -> Workload:
    fields = {
        "input_len": Span(low=4, high=8),
        "output_len": Span(low=3, high=3),
        "num_requests": 10,
    }
    return Workload(**(fields | changes))  # type: ignore[arg-type]


def test_percentiles_of_known_values() -> None:
    values = [float(v) for v in range(1, 101)]
    assert percentile(values, 0) == 1.0
    assert percentile(values, 50) == 50.5
    assert percentile(values, 90) == pytest.approx(90.1)
    assert percentile(values, 100) == 100.0
    assert percentile([7.0], 99) == 7.0
    for wrong, percent in (([], 50.0), ([1.0], 101.0)):
        with pytest.raises(ValueError, match="percentile"):
            percentile(wrong, percent)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.floats(0, 100))
def test_percentiles_as_numpy_has_them(values: list[float], percent: float) -> None:
    import numpy as np

    expected = float(np.percentile(values, percent))
    assert percentile(sorted(values), percent) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_figures_of_known_samples() -> None:
    good = Sample(
        start_s=1.0,
        first_s=1.2,
        end_s=2.0,
        gaps_s=array("d", [0.1, 0.3]),
        num_prompt_tokens=10,
        num_output_tokens=5,
        num_cached_tokens=4,
    )
    bad = Sample(start_s=1.0, end_s=1.5, error="HTTP 429: busy")
    measured = figures([good, bad, bad], elapsed_s=2.0)
    assert (measured.num_requests, measured.num_ok) == (3, 1)
    assert measured.errors == {"HTTP 429: busy": 2}
    assert measured.requests_per_s == 0.5
    assert measured.output_tokens_per_s == 2.5
    assert measured.total_tokens_per_s == 7.5
    assert measured.num_cached_tokens == 4
    assert measured.ttft is not None
    assert measured.ttft.mean == pytest.approx(0.2)
    assert measured.itl is not None
    assert measured.itl.max == pytest.approx(0.3)
    assert measured.tpot is not None
    assert measured.tpot.mean == pytest.approx(0.1)
    assert measured.e2e is not None
    assert measured.e2e.percentiles[99] == pytest.approx(1.0)
    assert summarise([]) is None


@pytest.mark.parametrize("text", ["0", "8:4", "a", "1:b", "", "-3", "99999999"])
def test_wrong_spans(text: str) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Span.parse(text)


def test_arrivals_are_poisson_and_repeatable() -> None:
    load = workload(num_requests=4000, request_rate=50.0)
    times = list(load.arrivals())
    assert times == list(load.arrivals())
    assert len(times) == 4000
    assert times[-1] == pytest.approx(80.0, rel=0.1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance == pytest.approx(mean**2, rel=0.2)
    assert list(workload(request_rate=None).arrivals()) == [0.0] * 10
    timed = workload(num_requests=None, duration_s=2.0, request_rate=100.0)
    assert all(at_s < 2.0 for at_s in timed.arrivals())
    with pytest.raises(ConfigError, match="not both"):
        workload(duration_s=1.0)


def test_prompts_have_the_lengths_and_the_shared_part() -> None:
    load = workload(input_len=Span(low=20, high=40), shared_prefix=0.5)
    vocabulary = Vocabulary(token_ids=tuple(range(1000)))
    maker = JobMaker(load, vocabulary)
    prompts = [maker.next().prompt for _ in range(50)]
    assert all(isinstance(p, list) and 20 <= len(p) <= 40 for p in prompts)
    shortest = min(len(p) for p in prompts) // 2
    assert len({tuple(p[:shortest]) for p in prompts}) == 1
    assert len({tuple(p) for p in prompts}) == 50
    again = JobMaker(load, vocabulary)
    assert [again.next().prompt for _ in range(50)] == prompts
    words = JobMaker(load, Vocabulary(words=("a", "b"))).next().prompt
    assert isinstance(words, str)
    assert 20 <= len(words.split()) <= 40


async def run(server: FakeServer, load: Workload) -> Run:
    target = await asyncio.to_thread(find_target, Endpoint(url=server.url), None)
    result = Run()
    await offer(target, load, result)
    return result


async def test_load_against_a_server(server: FakeServer) -> None:
    server.gap_s = 0.01
    result = await run(server, workload(concurrency=3))
    assert len(result.samples) == 10
    for sample in result.samples:
        assert sample.error == ""
        assert sample.num_output_tokens == 3
        assert sample.num_cached_tokens == 2
        assert 4 <= sample.num_prompt_tokens <= 8
        assert len(sample.gaps_s) == 2
        assert sample.first_s - sample.start_s >= 0.01
        assert sample.plan == "decode=d0 reason=test"
    body = server.bodies[0]
    assert body["max_tokens"] == 3
    assert body["ignore_eos"] is True
    assert set(body["prompt"]) <= {5, 6, 7}


async def test_a_server_that_tells_no_tokens_gets_words(server: FakeServer) -> None:
    server.tokenizes = False
    result = await run(server, workload(num_requests=2))
    assert not any(sample.error for sample in result.samples)
    assert isinstance(server.bodies[0]["prompt"], str)


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        ("refuse", "HTTP 429: too much at once"),
        ("cut", "the server closed the connection"),
        ("error_event", "in the stream: the engine failed"),
        ("stall", "no complete answer within 0.3 s"),
    ],
)
async def test_every_failure_is_counted_with_its_reason(
    server: FakeServer, behave: str, said: str
) -> None:
    server.behave = behave
    result = await run(server, workload(num_requests=4, concurrency=2, timeout_s=0.3))
    assert [sample.error for sample in result.samples] == [said] * 4


async def test_a_server_that_is_not_there() -> None:
    pool = Pool(Endpoint(url="http://127.0.0.1:9"))
    sample = await pool.send(b"", 1.0)
    assert sample.error.startswith("cannot connect")


async def test_duration_and_late_arrivals(server: FakeServer) -> None:
    server.gap_s = 0.05
    load = workload(num_requests=None, duration_s=0.5, request_rate=100.0, concurrency=1)
    result = await run(server, load)
    assert 1 <= len(result.samples) <= 5
    assert result.num_late > 0


async def test_events_may_be_split_anywhere() -> None:
    """A server that sends its answer in random pieces, twice on one connection."""
    event = b'data: {"choices":[{"text":"x"}]}\r\n\r\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":4}}\n\n'
    payload = event * 4 + usage + b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
    answer = head % len(payload) + payload
    rng = random.Random(3)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readexactly(len(request))
            rest = answer
            while rest:
                size = rng.randint(1, 20)
                writer.write(rest[:size])
                await writer.drain()
                await asyncio.sleep(0)
                rest = rest[size:]
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    endpoint = Endpoint(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    request = encode_request(endpoint, "/v1/completions", b"{}")
    pool = Pool(endpoint)
    for _ in range(2):
        sample = await pool.send(request, 5.0)
        assert (sample.error, sample.num_output_tokens, len(sample.gaps_s)) == ("", 4, 3)
    pool.close()
    server.close()
    await server.wait_closed()


def test_the_command_writes_a_report(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    arguments = ["bench", "serve", "--url", server.url, "--num-requests", "5", "--input-len", "4:6"]
    result = CliRunner().invoke(baton, [*arguments, "--json", str(path)])
    assert result.exit_code == 0, result.output
    assert "time to first token" in result.output
    report = json.loads(path.read_text())
    assert report["results"]["num_ok"] == 5
    assert report["results"]["ttft_ms"]["p99"] > 0
    assert report["workload"]["input_len"] == {"low": 4, "high": 6}
    assert report["machine"]["host_cpus"]


def test_the_command_fails_when_nothing_was_answered(server: FakeServer) -> None:
    server.behave = "refuse"
    result = CliRunner().invoke(
        baton, ["bench", "serve", "--url", server.url, "--num-requests", "2"]
    )
    assert result.exit_code == 1
    assert "too much at once" in result.output


def test_the_command_needs_a_server() -> None:
    result = CliRunner().invoke(baton, ["bench", "serve", "--url", "http://127.0.0.1:9"])
    assert isinstance(result.exception, BatonError)
    assert "cannot reach http://127.0.0.1:9" in result.exception.message
