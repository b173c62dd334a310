"""Between the value types and their wire messages, in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

from baton import __version__
from baton.protos import worker_pb2 as pb
from baton.protos.adapters import AdapterLoad
from baton.protos.constraints import Grammar, GrammarBackend, GrammarKind, Thought
from baton.protos.hashing import HASH_BYTES
from baton.protos.types import (
    GenerateRequest,
    GrammarCounts,
    KvDigest,
    KvEvents,
    Member,
    RequestOutput,
    SamplingParams,
    StepSample,
    TierLoad,
    TokenLogprob,
    TransferSample,
    WorkerLoad,
)

_LOAD_FIGURES: Final = tuple(
    field.name
    for field in dataclasses.fields(WorkerLoad)
    if field.name not in ("steps", "transfers", "kv_digest", "tiers", "grammars")
)
_ADAPTER_FIGURES: Final = tuple(
    field.name
    for field in dataclasses.fields(AdapterLoad)
    if field.name not in ("resident", "num_rows")
)


def sampling_to_proto(sampling: SamplingParams) -> pb.Sampling:
    """Writes every field; the optional ones only when set."""
    message = pb.Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias_ids=[token_id for token_id, _ in sampling.logit_bias],
        logit_bias_values=[bias for _, bias in sampling.logit_bias],
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
    )
    if sampling.logprobs is not None:
        message.logprobs = sampling.logprobs
    if sampling.prompt_logprobs is not None:
        message.prompt_logprobs = sampling.prompt_logprobs
    return message


def sampling_from_proto(message: pb.Sampling) -> SamplingParams:
    """The inverse of `sampling_to_proto`; the caller validates."""
    return SamplingParams(
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=tuple(zip(message.logit_bias_ids, message.logit_bias_values, strict=True)),
        seed=message.seed,
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
    )


def grammar_to_proto(grammar: Grammar | None) -> pb.Grammar | None:
    """None stays None: an absent field."""
    if grammar is None:
        return None
    return pb.Grammar(
        kind=grammar.kind.value,
        source=grammar.source,
        backend=grammar.backend.value,
        whitespace=grammar.whitespace,
        param=grammar.param,
    )


def grammar_from_proto(message: pb.Grammar) -> Grammar:
    """The inverse of `grammar_to_proto`, of a field that is present. ValueError: unknown words."""
    return Grammar(
        kind=GrammarKind(message.kind),
        source=message.source,
        backend=GrammarBackend(message.backend),
        whitespace=message.whitespace,
        param=message.param,
    )


def thought_to_proto(thought: Thought | None) -> pb.Thought | None:
    """None stays None: an absent field."""
    if thought is None:
        return None
    return pb.Thought(
        end_ids=thought.end_ids,
        start_ids=thought.start_ids,
        open=thought.open,
        budget=thought.budget,
        close_ids=thought.close_ids,
    )


def thought_from_proto(message: pb.Thought) -> Thought:
    """The inverse of `thought_to_proto`, of a field that is present."""
    return Thought(
        end_ids=tuple(message.end_ids),
        start_ids=tuple(message.start_ids),
        open=message.open,
        budget=message.budget if message.HasField("budget") else None,
        close_ids=tuple(message.close_ids),
    )


def generate_to_proto(request: GenerateRequest) -> pb.Generate:
    """A request as it crosses to a worker."""
    return pb.Generate(
        request_id=request.request_id,
        prompt_token_ids=request.prompt_token_ids,
        output_token_ids=request.output_token_ids,
        sampling=sampling_to_proto(request.sampling),
        priority=request.priority,
        cache_salt=request.cache_salt,
        grammar=grammar_to_proto(request.grammar),
        thought=thought_to_proto(request.thought),
        adapter_id=request.adapter_id,
    )


def generate_from_proto(message: pb.Generate) -> GenerateRequest:
    """The inverse of `generate_to_proto`."""
    return GenerateRequest(
        request_id=message.request_id,
        prompt_token_ids=list(message.prompt_token_ids),
        output_token_ids=list(message.output_token_ids),
        sampling=sampling_from_proto(message.sampling),
        priority=message.priority,
        cache_salt=message.cache_salt,
        grammar=grammar_from_proto(message.grammar) if message.HasField("grammar") else None,
        thought=thought_from_proto(message.thought) if message.HasField("thought") else None,
        adapter_id=message.adapter_id,
    )


def logprob_to_proto(value: TokenLogprob | None) -> pb.TopLogprobs:
    """None (the first prompt token) becomes an empty message with rank 0."""
    if value is None:
        return pb.TopLogprobs()
    return pb.TopLogprobs(
        token_id=value.token_id,
        logprob=value.logprob,
        rank=value.rank,
        top_ids=[token_id for token_id, _ in value.top],
        top_logprobs=[logprob for _, logprob in value.top],
    )


def logprob_from_proto(message: pb.TopLogprobs) -> TokenLogprob | None:
    """The inverse of `logprob_to_proto`."""
    if message.rank == 0:
        return None
    top = tuple(zip(message.top_ids, message.top_logprobs, strict=True))
    return TokenLogprob(message.token_id, message.logprob, message.rank, top)


def logprobs_to_proto(handle: int, output: RequestOutput) -> pb.LogprobChunk:
    """The logprobs of one output, for the gateway's handle."""
    return pb.LogprobChunk(
        handle=handle,
        tokens=[logprob_to_proto(value) for value in output.logprobs or ()],
        prompt=[logprob_to_proto(value) for value in output.prompt_logprobs or ()],
    )


def load_to_proto(load: WorkerLoad) -> pb.Load:
    """Field by field: both sides use the same names."""
    message = pb.Load(**{name: getattr(load, name) for name in _LOAD_FIGURES})
    if load.kv_digest is not None:
        message.kv_num_blocks, message.kv_digest = load.kv_digest
    for step in load.steps:
        message.steps.add(**step._asdict())
    for transfer in load.transfers:
        message.transfers.add(**transfer._asdict())
    for tier in load.tiers:
        message.tiers.add(**tier._asdict())
    if load.grammars is not None:
        message.grammars.MergeFrom(pb.GrammarCounts(**dataclasses.asdict(load.grammars)))
    return message


def load_from_proto(message: pb.Load) -> WorkerLoad:
    """The inverse of `load_to_proto`."""
    digest = KvDigest(message.kv_num_blocks, message.kv_digest)
    return WorkerLoad(
        kv_digest=digest if message.HasField("kv_digest") else None,
        grammars=_grammar_counts(message.grammars) if message.HasField("grammars") else None,
        steps=tuple(
            StepSample(s.num_new_tokens, s.num_pairs, s.num_rows, s.kv_tokens, s.seconds)
            for s in message.steps
        ),
        transfers=tuple(
            TransferSample(t.decode, t.num_bytes, t.seconds) for t in message.transfers
        ),
        tiers=tuple(
            TierLoad(*(getattr(tier, name) for name in TierLoad._fields)) for tier in message.tiers
        ),
        **{name: getattr(message, name) for name in _LOAD_FIGURES},
    )


def _grammar_counts(message: pb.GrammarCounts) -> GrammarCounts:
    names = (field.name for field in dataclasses.fields(GrammarCounts))
    values = {name: getattr(message, name) for name in names}
    return GrammarCounts(
        **values | {"compiled": dict(message.compiled), "refused": dict(message.refused)}
    )


def adapters_to_proto(load: AdapterLoad) -> pb.Adapters:
    """Field by field: both sides use the same names."""
    return pb.Adapters(**dataclasses.asdict(load))


def adapters_from_proto(message: pb.Adapters) -> AdapterLoad:
    """The inverse of `adapters_to_proto`."""
    figures = {name: getattr(message, name) for name in _ADAPTER_FIGURES}
    return AdapterLoad(
        resident=tuple(message.resident), num_rows=tuple(message.num_rows), **figures
    )


def worker_hello(
    member: Member, *, block_size: int, max_model_len: int, vocab_size: int
) -> pb.WorkerHello:
    """What a gateway learns of a worker first."""
    return pb.WorkerHello(
        worker_id=member.worker_id,
        incarnation=member.incarnation,
        role=member.role.value,
        model=member.model,
        model_digest=member.model_digest,
        block_size=block_size,
        max_model_len=max_model_len,
        vocab_size=vocab_size,
        version=__version__,
    )


def kv_events_to_proto(sequence: int, events: KvEvents) -> pb.KvEventBatch:
    """Hashes packed one after the other."""
    return pb.KvEventBatch(
        sequence=sequence,
        cleared=events.cleared,
        removed=b"".join(events.removed),
        stored=b"".join(events.stored),
        kept=b"".join(events.kept),
        lost=b"".join(events.lost),
        near=b"".join(events.near),
        far=b"".join(events.far),
    )


def kv_events_from_proto(message: pb.KvEventBatch) -> KvEvents:
    """The inverse of `kv_events_to_proto`, without the sequence number."""
    return KvEvents(
        stored=_unpack_hashes(message.stored),
        removed=_unpack_hashes(message.removed),
        cleared=message.cleared,
        kept=_unpack_hashes(message.kept),
        lost=_unpack_hashes(message.lost),
        near=_unpack_hashes(message.near),
        far=_unpack_hashes(message.far),
    )


def _unpack_hashes(packed: bytes) -> tuple[bytes, ...]:
    return tuple(packed[i : i + HASH_BYTES] for i in range(0, len(packed), HASH_BYTES))


def optional_logprobs(
    messages: Iterable[pb.TopLogprobs],
) -> list[TokenLogprob | None]:
    """A chunk's column of logprobs, None where nothing precedes the token."""
    return [logprob_from_proto(message) for message in messages]


def token_logprobs(messages: Sequence[pb.TopLogprobs]) -> list[TokenLogprob]:
    """Logprobs of generated tokens, which always exist; raises ValueError on an empty one."""
    values = [logprob_from_proto(message) for message in messages]
    if None in values:
        raise ValueError("a generated token came without its log-probability")
    return [value for value in values if value is not None]
