"""Where requests wait for their grammars, without delaying others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from baton.engine.grammar.backend import CompiledGrammar
from baton.engine.grammar.compiler import CompilerStatistics, GrammarCompiler
from baton.engine.grammar.constraint import Constraint
from baton.engine.grammar.thought import ThoughtTracker
from baton.engine.request import Request, RequestState
from baton.protos.errors import BatonError, GrammarError


class GrammarGate:
    """Gives requests their constraints. Belongs to the engine's thread, but for `wake`.

    wake: called on a pool's thread whenever a grammar that somebody waits for is done.
    """

    def __init__(self, compiler: GrammarCompiler, eos_token_ids: tuple[int, ...]) -> None:
        self._compiler = compiler
        self._eos_token_ids = eos_token_ids
        self._waiting: dict[str, tuple[Request, Future[CompiledGrammar]]] = {}
        self.wake: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._waiting

    def enter(self, request: Request) -> bool:
        """Gives the request its constraint, if it wants one; False: it must wait for its grammar.

        Raises GrammarError, if that is known already, and OverloadedError.
        """
        if request.grammar is None:
            if request.thought is not None:
                request.constraint = self._constraint(request, None)
            return True
        future = self._compiler.compile(request.grammar)
        if future.done():
            self._attach(request, future)
            return True
        self._waiting[request.request_id] = (request, future)
        future.add_done_callback(lambda _: self.wake())
        return False

    @property
    def has_done(self) -> bool:
        """Whether `take_done` would return something."""
        return any(_is_over(request, future) for request, future in self._waiting.values())

    def take_done(self) -> list[tuple[Request, BatonError | None]]:
        """Requests whose wait is over, with why they cannot go on, in the order of their coming.

        One whose KV is still on its way waits on; it goes on when that is here.
        """
        if not self._waiting:
            return []
        done = [pair for pair in self._waiting.values() if _is_over(*pair)]
        return [(request, self._leave_with(request, future)) for request, future in done]

    def drop(self, request: Request) -> None:
        """The request ended."""
        self._waiting.pop(request.request_id, None)

    def statistics(self) -> CompilerStatistics:
        return self._compiler.statistics()

    def close(self) -> None:
        self._compiler.close()

    def _leave_with(self, request: Request, future: Future[CompiledGrammar]) -> BatonError | None:
        del self._waiting[request.request_id]
        try:
            self._attach(request, future)
        except BatonError as error:
            return error
        return None

    def _attach(self, request: Request, future: Future[CompiledGrammar]) -> None:
        try:
            compiled = future.result()
        except GrammarError as error:
            param = request.grammar.param if request.grammar is not None else None
            raise GrammarError(error.message, param=param) from error
        request.constraint = self._constraint(request, compiled)
        if request.constraint.error is not None:
            raise request.constraint.error

    def _constraint(self, request: Request, compiled: CompiledGrammar | None) -> Constraint:
        """With the output that the request came with taken in."""
        constraint = Constraint(
            compiled,
            ThoughtTracker(request.thought) if request.thought is not None else None,
            eos_token_ids=self._eos_token_ids,
            stop_ids=request.stop_ids,
            min_tokens=request.sampling.min_tokens,
            jumps=request.sampling.logprobs is None and not request.sampling.penalizes,
        )
        constraint.replay(request.token_ids[request.num_prompt_tokens :])
        return constraint


def _is_over(request: Request, future: Future[CompiledGrammar]) -> bool:
    return request.state is RequestState.COMPILING and future.done()
