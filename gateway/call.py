"""One request as both fronts hand it to the service: what to answer, how, and within which
limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.gateway.reply import ReplyPlan
from baton.gateway.tenants import EVERYBODY
from baton.protos.constraints import Grammar
from baton.protos.types import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """Text to continue."""

    text: str
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    """Token ids to continue. `param` is what the request calls them."""

    token_ids: Sequence[int]
    param: str = "prompt"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """Messages for the chat template, which writes the special tokens itself."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    add_generation_prompt: bool = True
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_special_tokens: bool = False


Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """`sampling.max_tokens` and `sampling.seed` are ignored: None in the fields here means the
    default.

    `max_tokens` None takes the rest of the context if `fill_context`, else the configured number.
    `max_tokens` 0 computes the prompt only. Seeds of the n answers are seed, seed+1, ...
    """

    request_id: str
    prompts: Sequence[Prompt]
    sampling: SamplingParams
    model: str | None = None
    n: int = 1
    max_tokens: int | None = None
    fill_context: bool = False
    seed: int | None = None
    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    skip_special_tokens: bool = True
    priority: int = 0
    cache_salt: str = ""
    # None: all text is content.
    reply: ReplyPlan | None = None
    # None: any text.
    grammar: Grammar | None = None
    # None: the worker's own limit.
    timeout_s: float | None = None
    traceparent: str = ""
    # What the client calls it, for logs; nobody else goes by it, as two may be alike.
    client_request_id: str = ""
    # Whose request it is, and within how many seconds its first token is wanted (None: any).
    tenant: str = EVERYBODY
    ttft_s: float | None = None
    # What the client says that it continues.
    session: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A call that was checked and tokenized. `prompts` are token ids; `sampling` is complete."""

    call: Call
    prompts: Sequence[list[int]]
    # One for each prompt: where the context's rest is asked for, prompts get different max_tokens.
    sampling: Sequence[SamplingParams]
    # Content id of the adapter that `call.model` stands for.
    adapter_id: str = ""

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.prompts)

    @property
    def prompt_only(self) -> bool:
        return self.call.max_tokens == 0
