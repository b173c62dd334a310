"""What an engine accepts, and what ends a request: pure rules over one request."""

from __future__ import annotations

from collections.abc import Iterable

from baton.engine.batch import ModelInfo
from baton.engine.grammar.thought import ThoughtTracker
from baton.engine.request import Request
from baton.protos.errors import BatonError, ContextLengthError, InvalidRequestError
from baton.protos.types import FinishReason, GenerateRequest, RequestOutput, TokenLogprob


class RequestRules:
    """The rules of one engine: its model's vocabulary and eos tokens, and its context length."""

    def __init__(self, model: ModelInfo, max_model_len: int) -> None:
        self._vocab_size = model.vocab_size
        self._eos_token_ids = frozenset(model.eos_token_ids)
        self._max_model_len = max_model_len
        # How many tokens grammars left no choice about, so that no step sampled them.
        self.num_jumped_tokens = 0

    def validate(self, request: GenerateRequest) -> None:
        """Raises InvalidRequestError, or ContextLengthError if not one token more would fit."""
        if not request.request_id:
            raise InvalidRequestError("request_id is empty", param="request_id")
        if not request.prompt_token_ids:
            raise InvalidRequestError("the prompt has no tokens, but needs one", param="prompt")
        num_prompt, num_output = len(request.prompt_token_ids), len(request.output_token_ids)
        if num_prompt + num_output >= self._max_model_len:
            given = f"{num_prompt} tokens" + (f" and {num_output} of output" if num_output else "")
            raise ContextLengthError(
                f"the prompt has {given}, which leaves no room to answer in a context of "
                f"{self._max_model_len} tokens",
                param="prompt",
            )
        self._check_ids("prompt", request.prompt_token_ids)
        self._check_ids("output_token_ids", request.output_token_ids)
        request.sampling.validate(self._vocab_size)
        if request.thought is not None:
            request.thought.validate(self._vocab_size)
        if request.grammar is not None:
            request.grammar.validate()

    def bind(self, request: Request) -> None:
        """Writes what ends this request into it, so that each token's check is two comparisons."""
        if not request.sampling.ignore_eos:
            request.stop_ids |= self._eos_token_ids
        request.max_total_tokens = min(request.max_total_tokens, self._max_model_len)

    def accept(
        self, request: Request, token_id: int, logprob: TokenLogprob | None
    ) -> RequestOutput:
        """Appends a sampled token; the output that tells of it, with its end if it is the end."""
        request.token_ids.append(token_id)
        constraint = request.constraint
        if constraint is not None:
            constraint.take(token_id)
        reason = self._finish_reason(request)
        said = [token_id]
        if constraint is not None and constraint.jumps:
            # Forced ones from before it joined the batch are told of with the token after them.
            request.unsaid.append(token_id)
            if reason is None:
                self.jump(request)
                reason = self._finish_reason(request)
            said, request.unsaid = request.unsaid, []
        output = RequestOutput(
            request_id=request.request_id,
            token_ids=said,
            logprobs=None if logprob is None else [logprob],
            finish_reason=reason,
            num_cached_tokens=request.num_cached_tokens,
            began_s=request.began_s,
        )
        if constraint is not None and output.finish_reason is not None:
            constraint.report(output)
        if not request.prompt_logprobs_done:
            output.prompt_logprobs = request.take_prompt_logprobs()
        return output

    def jump(self, request: Request) -> None:
        """Appends the tokens that its grammar leaves no choice about; an output is still to say so.

        A step under way samples the first of them then, for its mask allowed nothing else.
        """
        constraint = request.constraint
        if constraint is None or not constraint.jumps or request.hold:
            return
        if not request.num_pending:
            constraint.plan()
        forced = constraint.jump(request.max_total_tokens - len(request.token_ids))
        if forced:
            self.num_jumped_tokens += len(forced)
            request.token_ids += forced
            request.unsaid += forced
            request.given_until = len(request.token_ids)
            request.num_redundant += request.num_pending
            request.num_pending = 0

    def refused(self, request: Request, error: BatonError) -> RequestOutput:
        """The only output of a request that cannot run."""
        return RequestOutput(
            request_id=request.request_id,
            token_ids=[],
            finish_reason=FinishReason.ERROR,
            error=error,
        )

    def complete(self, request: Request) -> RequestOutput | None:
        """The last output, without a token, of a request whose known tokens are all of it."""
        reason = self._finish_reason(request)
        if reason is None:
            return None
        said, request.unsaid = request.unsaid, []
        output = RequestOutput(request_id=request.request_id, token_ids=said, finish_reason=reason)
        if request.constraint is not None:
            request.constraint.report(output)
        elif request.thought is not None:
            made = request.token_ids[request.num_prompt_tokens :]
            output.num_reasoning_tokens = ThoughtTracker.replayed(request.thought, made).num_tokens
        return output

    def _finish_reason(self, request: Request) -> FinishReason | None:
        """Whether the last output token ends the request. `min_tokens` is the sampler's ban."""
        if request.constraint is not None:
            if request.constraint.error is not None:
                return FinishReason.ERROR
            if request.constraint.ended:
                return FinishReason.STOP
        # Once for every token of every step: the rare test comes last.
        token_ids = request.token_ids
        if token_ids[-1] in request.stop_ids and request.num_output_tokens:
            return FinishReason.STOP
        if len(token_ids) >= request.max_total_tokens:
            return FinishReason.LENGTH
        return None

    def _check_ids(self, name: str, token_ids: Iterable[int]) -> None:
        low, high = min(token_ids, default=0), max(token_ids, default=0)
        if low < 0 or high >= self._vocab_size:
            raise InvalidRequestError(
                f"{name} holds token id {low if low < 0 else high}, but the model's ids are "
                f"0 to {self._vocab_size - 1}",
                param=name,
            )
