"""What crosses a process arrives as it was sent."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.protos import convert
from baton.protos import worker_pb2 as pb
from baton.protos.adapters import AdapterLoad
from baton.protos.clock import ManualClock
from baton.protos.constraints import Grammar, GrammarBackend, GrammarKind, Thought
from baton.protos.errors import (
    BatonError,
    InvalidRequestError,
    OverloadedError,
    error_classes,
    error_from_code,
)
from baton.protos.feed import FeedHub, GatewayFeed
from baton.protos.hashing import HASH_BYTES, adapter_salt, block_hashes, hash_salt
from baton.protos.types import (
    GenerateRequest,
    GrammarCounts,
    KvEvents,
    SamplingParams,
    TierLoad,
    TokenLogprob,
    WorkerLoad,
)

f32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
ids = st.integers(0, 2**31 - 1)
hashes = st.lists(st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES), max_size=5).map(tuple)


@st.composite
def samplings(draw: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        temperature=draw(f32),
        top_k=draw(ids),
        top_p=draw(f32),
        min_p=draw(f32),
        repetition_penalty=draw(f32),
        presence_penalty=draw(f32),
        frequency_penalty=draw(f32),
        logit_bias=tuple(draw(st.lists(st.tuples(ids, f32), max_size=3))),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        max_tokens=draw(ids),
        min_tokens=draw(ids),
        stop_token_ids=tuple(draw(st.lists(ids, max_size=3))),
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.none() | st.integers(0, 20)),
        prompt_logprobs=draw(st.none() | st.integers(0, 20)),
    )


grammars = st.builds(
    Grammar,
    kind=st.sampled_from(GrammarKind),
    source=st.text(max_size=20),
    backend=st.sampled_from(GrammarBackend),
    whitespace=st.booleans(),
    param=st.text(max_size=9),
)
some_ids = st.lists(ids, max_size=3).map(tuple)
thoughts = st.builds(
    Thought,
    end_ids=some_ids,
    start_ids=some_ids,
    open=st.booleans(),
    budget=st.none() | ids,
    close_ids=some_ids,
)


@given(
    samplings(),
    some_ids,
    st.binary(max_size=16),
    st.none() | grammars,
    st.none() | thoughts,
    st.sampled_from(["", "5f"]),
)
def test_requests_survive_the_wire(
    sampling: SamplingParams,
    tokens: tuple[int, ...],
    salt: bytes,
    grammar: Grammar | None,
    thought: Thought | None,
    adapter_id: str,
) -> None:
    request = GenerateRequest(
        request_id="r",
        prompt_token_ids=list(tokens),
        output_token_ids=list(tokens[1:]),
        sampling=sampling,
        priority=-3,
        cache_salt=salt,
        grammar=grammar,
        thought=thought,
        adapter_id=adapter_id,
    )
    raw = convert.generate_to_proto(request).SerializeToString()
    assert convert.generate_from_proto(pb.Generate.FromString(raw)) == request


@given(hashes, hashes, st.booleans())
def test_kv_events_survive_the_wire(
    stored: tuple[bytes, ...], removed: tuple[bytes, ...], cleared: bool
) -> None:
    events = KvEvents(
        stored=stored,
        removed=removed,
        cleared=cleared,
        kept=removed[1:],
        lost=stored[:1],
        near=stored[1:],
        far=removed[:1],
    )
    assert convert.kv_events_from_proto(convert.kv_events_to_proto(7, events)) == events


def test_loads_and_logprobs_survive_the_wire() -> None:
    tier = TierLoad("disk", 7, 9, 20, 11, 8, 1, 2, 0.125)
    load = WorkerLoad(
        num_running=3, free_blocks=5, decode_step_s=0.25, draining=True, tiers=(tier, tier)
    )
    assert convert.load_from_proto(convert.load_to_proto(load)) == load
    grammars = GrammarCounts(
        compiled={"guidance": 2}, refused={"invalid": 1}, compile_s=0.5, num_masks=9, fill_s=0.25
    )
    load = replace(load, grammars=grammars)
    assert convert.load_from_proto(convert.load_to_proto(load)) == load
    value = TokenLogprob(4, -0.5, 2, ((9, -0.25), (4, -0.5)))
    messages = [convert.logprob_to_proto(v) for v in (None, value)]
    assert convert.optional_logprobs(messages) == [None, value]
    with pytest.raises(ValueError, match="log-probability"):
        convert.token_logprobs(messages)


def test_hashes_name_everything_before_them() -> None:
    tokens = list(range(50))
    whole = block_hashes(tokens, 16)
    assert len(whole) == 3
    assert block_hashes(tokens[:32], 16) == whole[:2]
    assert block_hashes(tokens[32:], 16, parent=whole[1]) == whole[2:]
    assert block_hashes([99, *tokens[1:]], 16)[2] != whole[2]
    assert block_hashes(tokens, 16, salt=hash_salt("tenant"))[0] != whole[0]
    assert hash_salt("ab", "c") != hash_salt("a", "bc")
    assert hash_salt("", "") == b""


def test_salts_keep_adapters_apart() -> None:
    salts = [adapter_salt(salt, name) for salt in (b"", b"t") for name in ("", "5f", "60")]
    assert len(set(salts)) == 6
    assert salts[0] == b""
    assert salts[3] == b"t"


def test_the_error_tree_can_be_rebuilt_from_codes() -> None:
    codes = error_classes()
    assert len(codes) == len({cls.default_code for cls in codes.values()})
    for code, cls in codes.items():
        rebuilt = error_from_code(code, "why")
        assert type(rebuilt) is cls
        assert rebuilt.message == "why"
    assert type(error_from_code("from the future", "why")) is BatonError
    assert OverloadedError("full", retry_after_s=2.5).retry_after_s == 2.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -1.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("top_k", -1),
        ("max_tokens", 0),
        ("min_tokens", 17),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("logit_bias", ((100, 1.0),)),
        ("logit_bias", ((1, 101.0),)),
        ("stop_token_ids", (100,)),
    ],
)
def test_bad_sampling_is_named(field: str, value: object) -> None:
    params = SamplingParams(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=field) as caught:
        params.validate(vocab_size=100)
    assert caught.value.param == field
    assert "must be in" in caught.value.message


async def test_a_slow_gateway_gets_merged_messages() -> None:
    feed = GatewayFeed(pb.WorkerHello(worker_id="w"))
    messages = feed.messages()
    assert (await anext(messages)).hello.worker_id == "w"
    for step in range(3):
        feed.tokens(1, [step])
        feed.tokens(2, [step, step])
    feed.done(pb.Done(handle=1, finish_reason="stop"))
    merged = await anext(messages)
    assert list(merged.tokens.handles) == [1, 2] * 3
    assert list(merged.tokens.num_tokens) == [1, 2] * 3
    assert [done.handle for done in merged.done] == [1]
    feed.close()
    assert [m async for m in messages] == []


async def test_a_gateway_that_stops_reading_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.protos.feed.MAX_PENDING_BYTES", 100)
    feed = GatewayFeed(pb.WorkerHello())
    for sequence in range(10):
        feed.kv_events(pb.KvEventBatch(sequence=sequence, stored=b"x" * 16))
    with pytest.raises(OverloadedError, match="KV events"):
        await anext(feed.messages())


async def test_event_batches_are_numbered_for_every_gateway() -> None:
    hub, early, late = FeedHub(), GatewayFeed(pb.WorkerHello()), GatewayFeed(pb.WorkerHello())
    hub.join(early, KvEvents(cleared=True))
    hub.broadcast(None, KvEvents(stored=(b"a" * 16,)))
    hub.broadcast(None, KvEvents())
    hub.join(late, KvEvents(cleared=True, stored=(b"a" * 16,)))
    hub.broadcast(WorkerLoad(num_running=1), KvEvents(removed=(b"a" * 16,)))
    first, second = await anext(early.messages()), await anext(late.messages())
    assert [batch.sequence for batch in first.kv_events] == [0, 1, 2]
    assert [batch.sequence for batch in second.kv_events] == [1, 2]
    assert first.load.num_running == second.load.num_running == 1
    hub.close()
    await asyncio.sleep(0)


async def test_adapters_are_told_when_they_change_and_to_newcomers() -> None:
    hub, early, late = FeedHub(), GatewayFeed(pb.WorkerHello()), GatewayFeed(pb.WorkerHello())
    load = AdapterLoad(resident=("a", "b"), num_rows=(3, 0), num_loaded=5, num_loads=7, load_s=0.5)
    hub.join(early, KvEvents(cleared=True))
    await anext(early.messages())
    hub.broadcast_adapters(load)
    hub.join(late, KvEvents(cleared=True))
    for feed in (early, late):
        message = await anext(feed.messages())
        assert convert.adapters_from_proto(message.adapters) == load
    hub.broadcast_adapters(load)
    hub.broadcast(WorkerLoad(num_running=1), KvEvents())
    assert not (await anext(early.messages())).HasField("adapters")


def test_a_manual_clock_only_goes_forward() -> None:
    clock = ManualClock(5.0)
    clock.advance(1.5)
    assert clock.now_s() == 6.5
    with pytest.raises(ValueError, match="go back"):
        clock.advance(-1)
