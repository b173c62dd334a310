"""The core that both fronts call: checks a call, tokenizes it, and opens its sequences on the
fleet.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from baton.gateway.adapters import AdapterTable
from baton.gateway.auth import ApiKeys
from baton.gateway.call import Call, ChatPrompt, Job, Prompt, TextPrompt, TokenPrompt
from baton.gateway.choice import Choice, ChoiceRules
from baton.gateway.config import GatewayConfig
from baton.gateway.dialect import PROMPT_TAIL_TOKENS, load_dialect
from baton.gateway.limits import Admission
from baton.gateway.metrics import ChoiceMeter, Metrics
from baton.gateway.pacer import Pacer
from baton.gateway.request_trace import request_span
from baton.gateway.seam import Fleet, Generation
from baton.gateway.stop_strings import StopChecker
from baton.gateway.tokenizer import Tokenizer
from baton.protos.clock import Clock, SystemClock
from baton.protos.constraints import Thought
from baton.protos.errors import (
    ContextLengthError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from baton.protos.hashing import hash_salt
from baton.protos.logs import MAX_PROMPT_CHARS, PROMPT_LOGGER, fields
from baton.protos.types import GenerateRequest

T = TypeVar("T")
_prompts = logging.getLogger(PROMPT_LOGGER)

# Below this, encoding takes about a millisecond and a thread would only add to it.
_INLINE_CHARS = 2048


class GatewayService:
    """Stateless between requests but for admission and metrics. Belongs to one event loop."""

    def __init__(
        self,
        config: GatewayConfig,
        fleet: Fleet,
        tokenizer: Tokenizer,
        *,
        clock: Clock | None = None,
        adapters: AdapterTable | None = None,
    ) -> None:
        self.config = config
        self.fleet = fleet
        self.tokenizer = tokenizer
        # Worked out once: without configured names it asks the file system.
        self.model_names = config.model_names
        self.adapters = AdapterTable() if adapters is None else adapters
        self.dialect = load_dialect(config, tokenizer)
        self.clock = clock or SystemClock()
        tenants = config.every_tenant
        self.keys = ApiKeys(tenants)
        self.admission = Admission(
            config.max_concurrent_requests, self.clock, shared=len(tenants) > 1
        )
        self.metrics = Metrics(fleet, lambda: self.admission.in_flight, self.adapters)
        self.pacer = Pacer()
        # Its queue is bounded by admission: a request has at most one piece of work in it.
        self._executor = ThreadPoolExecutor(config.tokenizer_threads, thread_name_prefix="tokenize")

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together. UnavailableError while nothing says so."""
        try:
            return self.fleet.model.max_model_len
        except UnavailableError:
            if self.tokenizer.facts.max_model_len is None:
                raise
            return self.tokenizer.facts.max_model_len

    def check_model(self, name: str | None) -> None:
        """None means the model that is served. NotFoundError for what is neither it nor an
        adapter.
        """
        if not self._is_base(name) and name not in self.adapters.adapters:
            served = ", ".join((*self.model_names, *self.adapters.some_names()))
            raise NotFoundError(
                f"the model {str(name)[:80]!r} is not served here: use {served}",
                param="model",
                code="model_not_found",
            )

    def reported_model(self, name: str | None) -> str:
        """What answers call the model that was asked for by `name`."""
        return str(name) if name in self.adapters.adapters else self.model_names[0]

    def _is_base(self, name: str | None) -> bool:
        return name is None or name in self.model_names

    def timeout_s(self, wanted_s: float | None) -> float:
        """The request's own limit: what it asks for, within what is allowed."""
        if wanted_s is None:
            return self.config.default_timeout_s
        if not 0 < wanted_s <= self.config.max_timeout_s:
            raise InvalidRequestError(
                f"timeout_s is {wanted_s}, but must be in (0, {self.config.max_timeout_s:g}]",
                param="timeout_s",
            )
        return wanted_s

    def ttft_s(self, wanted_s: float | None) -> float | None:
        """Within what the first token is wanted: later than that, the request is refused."""
        if wanted_s is not None and not 0 < wanted_s <= self.config.max_timeout_s:
            raise InvalidRequestError(
                f"ttft_s is {wanted_s}, but must be in (0, {self.config.max_timeout_s:g}]",
                param="ttft_s",
            )
        return wanted_s

    async def tokenize(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; long ones on a thread."""
        if isinstance(prompt, TokenPrompt):
            return self._checked_ids(prompt)
        return await self.off_loop(_num_chars(prompt), lambda: self._encode(prompt))

    async def off_loop(self, size: int, work: Callable[[], T]) -> T:
        """Runs `work` here if its `size` (in characters or bytes) is small, else on a thread."""
        if size <= _INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def prepare(self, call: Call) -> Job:
        """Checks everything about a call that needs no worker. Raises the error that names the
        field.
        """
        self.check_model(call.model)
        num_sequences = call.n * len(call.prompts)
        if num_sequences > self.config.max_sequences_per_request:
            raise InvalidRequestError(
                f"n times the number of prompts is {num_sequences}, but at most "
                f"{self.config.max_sequences_per_request} are allowed in one request",
                param="n",
            )
        prompts = [await self.tokenize(prompt) for prompt in call.prompts]
        seed = secrets.randbits(62) if call.seed is None else call.seed
        sampling = [
            replace(call.sampling, max_tokens=self._max_tokens(call, len(prompt)), seed=seed)
            for prompt in prompts
        ]
        for params in sampling:
            params.validate(self.tokenizer.vocab_size)
        return Job(call=call, prompts=prompts, sampling=sampling)

    @contextlib.asynccontextmanager
    async def open(self, job: Job, received_s: float) -> AsyncIterator[list[Choice]]:
        """The sequences of a job, prompt by prompt, each already sent or waiting for its first
        sibling.

        Leaving the block aborts what has not ended. Every choice must be consumed concurrently.
        """
        name = job.call.model
        if name is None or self._is_base(name):
            async with self._choices(job, received_s) as choices:
                yield choices
            return
        # Held for as long as any sequence runs, so that its content stays on the workers.
        with self.adapters.using(name) as adapter:
            job = replace(job, adapter_id=adapter.adapter_id)
            async with self._choices(job, received_s) as choices:
                yield choices

    @contextlib.asynccontextmanager
    async def _choices(self, job: Job, received_s: float) -> AsyncIterator[list[Choice]]:
        choices: list[Choice] = []
        with request_span(self.fleet.tracing, job, received_s, self.clock) as (traced, found):
            self._log_prompts(job)
            try:
                for index in range(len(traced.prompts)):
                    choices += self._group(traced, index, received_s)
                for head in choices[:: traced.call.n]:
                    await head.begin()
                self.metrics.num_prompt_tokens += traced.num_prompt_tokens
                yield choices
                self.metrics.e2e_s.observe(self.clock.now_s() - received_s)
                for choice in choices:
                    self.metrics.served(choice.done)
            finally:
                found["output_tokens"] = sum(choice.num_tokens for choice in choices)
                for choice in choices:
                    await choice.aclose()

    def _log_prompts(self, job: Job) -> None:
        if not _prompts.isEnabledFor(logging.INFO):
            return
        for token_ids in job.prompts:
            # A token is a character at least, but for pieces of one.
            text = self.tokenizer.decode(token_ids[:MAX_PROMPT_CHARS])[:MAX_PROMPT_CHARS]
            _prompts.info("prompt", extra=fields(request_id=job.call.request_id, prompt=text))

    def start(self) -> None:
        """Begins to watch the running loop."""
        self.pacer.start()

    def close(self) -> None:
        """Ends the tokenizer's threads and the watch."""
        self.pacer.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _group(self, job: Job, prompt_index: int, received_s: float) -> list[Choice]:
        """The n sequences of one prompt: the others start when the first has a token, where its KV
        is.
        """
        call, first_token = job.call, asyncio.Event()
        base, loop = prompt_index * call.n, asyncio.get_running_loop()

        def starter(i: int) -> Callable[[], Awaitable[Generation]]:
            async def start() -> Generation:
                if i == 0:
                    return self._generate(job, prompt_index, 0, None)
                await first_token.wait()
                group[i].prompt_logprobs = group[0].prompt_logprobs
                return self._generate(job, prompt_index, i, group[0].generation.worker_id)

            return start

        def observer(i: int) -> Callable[[int], None]:
            meter = ChoiceMeter(self.metrics, self.clock, received_s, first=base + i == 0)
            if i > 0:
                return meter

            def observe(num_tokens: int) -> None:
                meter(num_tokens)
                if not first_token.is_set():
                    first_token.set()
                    # The client's token goes first.
                    loop.call_soon(self.metrics.planned, group[0].plan)

            return observe

        group = [
            Choice(base + i, starter(i), self._rules(job, prompt_index, observer(i)))
            for i in range(call.n)
        ]
        return group

    def _rules(self, job: Job, prompt_index: int, observe: Callable[[int], None]) -> ChoiceRules:
        call = job.call
        text = self.tokenizer if call.reply is None else self.dialect.text
        return ChoiceRules(
            text=text.incremental_text(skip_special_tokens=call.skip_special_tokens),
            stop=StopChecker(call.stop, keep=call.keep_stop) if call.stop else None,
            reader=call.reply.reader(self._tail(job, prompt_index)) if call.reply else None,
            min_tokens=call.sampling.min_tokens,
            observe=observe,
        )

    def _tail(self, job: Job, prompt_index: int) -> str:
        """How a prompt ends, as text."""
        return self.tokenizer.decode(job.prompts[prompt_index][-PROMPT_TAIL_TOKENS:])

    def _thought(self, job: Job, prompt_index: int) -> Thought | None:
        """What the worker has to know of the answer's thought; None if that changes nothing."""
        reply = job.call.reply
        if reply is None or (job.call.grammar is None and reply.thinking_budget is None):
            return None
        return reply.thought(self._tail(job, prompt_index))

    def _generate(
        self, job: Job, prompt_index: int, sibling: int, stick_to: str | None
    ) -> Generation:
        call = job.call
        sampling = job.sampling[prompt_index]
        if sibling > 0:
            # The prompt is scored once: its logprobs would cost every sibling its prefix cache.
            seed = _next_seed(sampling.seed, sibling)
            sampling = replace(sampling, seed=seed, prompt_logprobs=None)
        request = GenerateRequest(
            request_id=f"{call.request_id}-{prompt_index * call.n + sibling}",
            prompt_token_ids=job.prompts[prompt_index],
            sampling=sampling,
            priority=call.priority,
            cache_salt=hash_salt(call.cache_salt),
            grammar=call.grammar,
            thought=self._thought(job, prompt_index),
            # Names are the tenants' own.
            session=f"{call.tenant}/{call.session}" if call.session else "",
            adapter_id=job.adapter_id,
        )
        return self.fleet.generate(
            request,
            timeout_s=call.timeout_s,
            traceparent=call.traceparent,
            stick_to=stick_to,
            tenant=call.tenant,
            ttft_s=call.ttft_s,
        )

    def _encode(self, prompt: TextPrompt | ChatPrompt) -> list[int]:
        if isinstance(prompt, TextPrompt):
            text = prompt.text
        else:
            text = self.tokenizer.render_chat(
                prompt.messages,
                tools=prompt.tools,
                add_generation_prompt=prompt.add_generation_prompt,
                template_kwargs=prompt.template_kwargs,
            )
        return self.tokenizer.encode(text, add_special_tokens=prompt.add_special_tokens)

    def _checked_ids(self, prompt: TokenPrompt) -> list[int]:
        vocab_size = self.tokenizer.vocab_size
        for token_id in prompt.token_ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequestError(
                    f"{prompt.param} has the token id {token_id}, but ids must be in "
                    f"[0, {vocab_size})",
                    param=prompt.param,
                )
        return list(prompt.token_ids)

    def _max_tokens(self, call: Call, num_prompt_tokens: int) -> int:
        if num_prompt_tokens == 0:
            raise InvalidRequestError(
                "the prompt has no tokens: give at least one", param=_prompt_param(call)
            )
        limit = min(self.max_model_len - 1, self.config.max_prompt_tokens or self.max_model_len)
        if num_prompt_tokens > limit:
            raise ContextLengthError(
                f"the prompt has {num_prompt_tokens} tokens, but at most {limit} are possible "
                f"(the context is {self.max_model_len}): shorten it",
                param=_prompt_param(call),
            )
        room = self.max_model_len - num_prompt_tokens
        if call.max_tokens is None:
            return room if call.fill_context else min(room, self.config.completion_max_tokens)
        if call.max_tokens > room:
            raise ContextLengthError(
                f"max_tokens is {call.max_tokens}, but the prompt has {num_prompt_tokens} tokens "
                f"and the context is {self.max_model_len}: use at most {room}",
                param="max_tokens",
            )
        # A worker always samples one token; a prompt-only call drops it.
        return max(1, call.max_tokens)


def _next_seed(seed: int, steps: int) -> int:
    """seed + steps, wrapped into 64 signed bits."""
    return (seed + steps + 2**63) % 2**64 - 2**63


def _num_chars(prompt: TextPrompt | ChatPrompt) -> int:
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    parts = [*(message.get("content") for message in prompt.messages), *prompt.tools]
    return sum(len(str(part)) for part in parts)


def _prompt_param(call: Call) -> str:
    return "messages" if isinstance(call.prompts[0], ChatPrompt) else "prompt"
