"""public.proto to and from what the core speaks."""

from __future__ import annotations

from collections.abc import Sequence

from baton.gateway.call import Call, ChatPrompt, Prompt, TextPrompt, TokenPrompt
from baton.gateway.chat_request import plan_chat
from baton.gateway.choice import Choice
from baton.gateway.dialect import Dialect
from baton.gateway.grpc_chat import chat_ask, output_grammar
from baton.gateway.openai_schema import MAX_LOGPROBS, MAX_STOPS
from baton.gateway.reply import ReplyPlan
from baton.gateway.tokenizer import Tokenizer
from baton.protos import public_pb2 as pb
from baton.protos.constraints import Grammar
from baton.protos.errors import InvalidRequestError
from baton.protos.types import SamplingParams, TokenLogprob

_DEFAULTS = SamplingParams()


def generate_call(
    request: pb.GenerateRequest, request_id: str, timeout_s: float, dialect: Dialect
) -> Call:
    """The Call of a generate request. InvalidRequestError names the field."""
    sampling = request.sampling
    stops = tuple(sampling.stop)
    if len(stops) > MAX_STOPS or not all(stops):
        raise InvalidRequestError(
            f"sampling.stop must be at most {MAX_STOPS} strings, none of them empty",
            param="sampling.stop",
        )
    if sampling.HasField("max_tokens") and sampling.max_tokens < 1:
        raise InvalidRequestError(
            f"sampling.max_tokens is {sampling.max_tokens}, but must be 1 or more",
            param="sampling.max_tokens",
        )
    prompt, grammar, reply = _plan(request, dialect)
    return Call(
        request_id=request_id,
        prompts=(prompt,),
        sampling=_sampling(sampling),
        model=request.model or None,
        max_tokens=sampling.max_tokens if sampling.HasField("max_tokens") else None,
        fill_context=isinstance(prompt, ChatPrompt),
        seed=sampling.seed if sampling.HasField("seed") else None,
        stop=stops,
        priority=request.priority,
        cache_salt=request.cache_salt,
        timeout_s=timeout_s,
        grammar=grammar,
        reply=reply,
    )


def usage_message(num_prompt_tokens: int, choice: Choice) -> pb.Usage:
    """Token counts of one sequence."""
    return pb.Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=choice.num_tokens,
        cached_tokens=choice.num_cached_tokens,
        reasoning_tokens=choice.num_reasoning_tokens,
    )


def logprob_messages(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprob | None] | None
) -> list[pb.TokenLogprob]:
    """Messages of the entries; the missing one of a prompt's first token has rank 0."""
    name = tokenizer.token_text
    return [
        pb.TokenLogprob(
            token_id=entry.token_id,
            text=name(entry.token_id),
            logprob=entry.logprob,
            rank=entry.rank,
            top=[
                pb.TopLogprob(token_id=token_id, text=name(token_id), logprob=logprob)
                for token_id, logprob in entry.top
            ],
        )
        if entry is not None
        else pb.TokenLogprob()
        for entry in entries or ()
    ]


def _plan(
    request: pb.GenerateRequest, dialect: Dialect
) -> tuple[Prompt, Grammar | None, ReplyPlan | None]:
    """What is sent to the model, what it must write, and how that is read."""
    kind = request.WhichOneof("input")
    grammar = output_grammar(request)
    if kind == "chat":
        plan = plan_chat(chat_ask(request.chat, grammar), dialect)
        return plan.prompt, plan.grammar, plan.reply
    if kind == "prompt":
        return TextPrompt(text=request.prompt), grammar, None
    if kind == "token_ids":
        prompt = TokenPrompt(token_ids=request.token_ids.ids, param="token_ids")
        return prompt, grammar, None
    raise InvalidRequestError("give one of prompt, chat or token_ids", param="input")


def _sampling(wanted: pb.Sampling) -> SamplingParams:
    def number(name: str) -> float:
        field = wanted if wanted.HasField(name) else _DEFAULTS
        return float(getattr(field, name))

    return SamplingParams(
        temperature=number("temperature"),
        top_k=int(number("top_k")),
        top_p=number("top_p"),
        min_p=number("min_p"),
        repetition_penalty=number("repetition_penalty"),
        presence_penalty=number("presence_penalty"),
        frequency_penalty=number("frequency_penalty"),
        logit_bias=tuple(wanted.logit_bias.items()),
        min_tokens=int(number("min_tokens")),
        stop_token_ids=tuple(wanted.stop_token_ids),
        ignore_eos=wanted.ignore_eos,
        logprobs=_count(wanted, "logprobs"),
        prompt_logprobs=_count(wanted, "prompt_logprobs"),
    )


def _count(wanted: pb.Sampling, name: str) -> int | None:
    if not wanted.HasField(name):
        return None
    value = int(getattr(wanted, name))
    if not 0 <= value <= MAX_LOGPROBS:
        raise InvalidRequestError(
            f"sampling.{name} is {value}, but must be in [0, {MAX_LOGPROBS}]",
            param=f"sampling.{name}",
        )
    return value
