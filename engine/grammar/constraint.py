"""One request's constraint: what its next token may be, and when its output is complete."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from baton.engine.grammar.backend import CompiledGrammar, allow, forbid, has_token
from baton.engine.grammar.thought import ThoughtTracker
from baton.protos.errors import BatonError, GrammarError
from baton.protos.types import RequestOutput

# A text that must come can be begun by so many tokens at most: one for each of its beginnings, up
# to the longest that vocabularies hold.
MAX_WHEN_FORCED: Final = 128


class Wanted(Enum):
    """What a row's mask is made of. NOTHING: it needs none."""

    NOTHING = "nothing"
    FORCED = "forced"
    NO_END = "no end"
    GRAMMAR = "grammar"


class Constraint:
    """Thought first, then the grammar; either may be absent. Written by the engine's thread.

    The masks of a step are filled on another thread while the device computes; until they are
    applied, nobody advances the constraint.

    ends: the tokens that end the output: eos and the request's stop ids. They are allowed where the
        grammar is complete, and never in a thought that a grammar follows.
    jumps: whether tokens that the grammar forces are taken without being sampled, by `jump`. If
        not, they are sampled under masks that allow nothing else: the output is the same.
    keep_going: how many output tokens come before any of these, and whether they are wanted at
        all (ignore_eos); a grammar that allows nothing else ends the output all the same.
    """

    __slots__ = (
        "_at_start",
        "_ends",
        "_eos",
        "_grammar",
        "_ignore_end",
        "_matcher",
        "_min_tokens",
        "_num_foreseen",
        "_num_output",
        "_planned",
        "_run",
        "_thought",
        "ended",
        "error",
        "jumps",
    )

    def __init__(
        self,
        grammar: CompiledGrammar | None,
        thought: ThoughtTracker | None,
        *,
        eos_token_ids: Sequence[int],
        stop_ids: Collection[int],
        min_tokens: int = 0,
        jumps: bool = False,
    ) -> None:
        self._grammar = grammar
        self._matcher = grammar.matcher() if grammar is not None else None
        self._thought = thought
        self._eos = eos_token_ids
        self._ends = frozenset(eos_token_ids) | frozenset(stop_ids)
        self._ignore_end = not self._ends.issubset(stop_ids)
        self._min_tokens = min_tokens
        self._num_output = 0
        self._num_foreseen = 0
        self.jumps = jumps
        # The tokens that must come next, and whether that was found out for where it stands.
        self._run: deque[int] = deque()
        self._planned = False
        # A thought may begin with the output's first token, if the prompt did not open one.
        self._at_start = thought is not None and not thought.busy
        # The grammar saw its end; what went wrong in it.
        self.ended = False
        self.error: BatonError | None = None

    @property
    def backend(self) -> str:
        """Who enforces the grammar; empty without one."""
        return "" if self._grammar is None else self._grammar.backend

    @property
    def grammar(self) -> CompiledGrammar | None:
        return self._grammar

    @property
    def num_reasoning_tokens(self) -> int:
        return 0 if self._thought is None else self._thought.num_tokens

    @property
    def native(self) -> Any:
        """The native matcher, for a batched fill."""
        return None if self._matcher is None else self._matcher.native

    def foresee(self, token_id: int) -> None:
        """Takes in a token that a step has sampled, before the scheduler says so by `take`."""
        self._num_foreseen += 1
        self.advance(token_id)

    def take(self, token_id: int) -> None:
        """The scheduler's word that the output has this token."""
        if self._num_foreseen:
            self._num_foreseen -= 1
        else:
            self.advance(token_id)

    def replay(self, token_ids: Iterable[int]) -> None:
        """Takes in output that was made elsewhere, by the same rules."""
        for token_id in token_ids:
            self.plan()
            self.take(token_id)

    def plan(self) -> None:
        """Finds out which tokens must come next. A grammar that forces a text leaves only the
        choice of how to split it; it is split as the tokenizer would (llguidance's fast-forward
        tokens; SGLang's jump-forward decoding retokenizes to the same end), up to where the text
        after it could change the split.
        """
        if self._planned:
            return
        self._planned = True
        if self._matcher is None or self._at_start or self.wanted() is not Wanted.GRAMMAR:
            return
        for token_id in self._matcher.forced():
            if token_id in self._ends:
                break
            self._run.append(token_id)

    def jump(self, limit: int) -> list[int]:
        """Takes in the tokens that are known to come next, at most `limit`, and returns them."""
        taken = list(islice(self._run, limit)) if self.jumps else []
        for token_id in taken:
            self.advance(token_id)
        return taken

    def report(self, output: RequestOutput) -> None:
        """What the last output says of thoughts and grammar."""
        output.num_reasoning_tokens = self.num_reasoning_tokens
        output.grammar_backend = self.backend
        output.error = self.error

    def advance(self, token_id: int) -> None:
        """Takes in an output token. What cannot be sets `error`, once."""
        self._num_output += 1
        run = self._run
        if run and run[0] == token_id:
            run.popleft()
        else:
            run.clear()
        self._planned = bool(run)
        thought, matcher = self._thought, self._matcher
        if thought is not None:
            if matcher is None or thought.busy:
                thought.advance(token_id)
                return
            at_start, self._at_start = self._at_start, False
            if at_start and thought.starts_with(token_id) and not self._allows(token_id):
                thought.begin(token_id)
                return
        if matcher is None or self.error is not None:
            return
        if token_id in self._ends and matcher.can_end():
            self.ended = True
        elif not matcher.accept(token_id):
            problem = matcher.error()
            self.error = (
                GrammarError(f"the grammar cannot be followed any further: {problem}")
                if problem
                else BatonError(f"token {token_id} came, which the grammar forbids here")
            )

    def wanted(self) -> Wanted:
        """What the mask of its next token is made of."""
        if self.ended or self.error is not None:
            return Wanted.NOTHING
        thought = self._thought
        if thought is not None:
            if thought.forced:
                return Wanted.FORCED
            if self._matcher is None:
                return Wanted.NOTHING
            if thought.inside:
                return Wanted.NO_END
        if self._run:
            return Wanted.FORCED
        return Wanted.NOTHING if self._matcher is None else Wanted.GRAMMAR

    def write(self, words: npt.NDArray[np.int32], wanted: Wanted) -> None:
        """Writes a mask that needs no grammar into a row of a bitmask."""
        if wanted is Wanted.FORCED:
            words[:] = 0
            allow(words, self._forced_id())
        else:
            words[:] = -1
            for token_id in self._ends:
                forbid(words, token_id)

    def settle(self, words: npt.NDArray[np.int32], num_allowed: int) -> None:
        """Corrects a row that the grammar filled: what it forces, ends, and the start of a thought.

        num_allowed: how many tokens it allows.
        """
        if self._matcher is not None and (problem := self._matcher.error()):
            self.error = GrammarError(f"the grammar cannot be followed any further: {problem}")
            words[:] = 0
            allow(words, self._eos[0])
            return
        if num_allowed <= MAX_WHEN_FORCED:
            self.plan()
        self._planned = True
        if self._run:
            self.write(words, Wanted.FORCED)
            return
        if self._at_start and self._thought is not None:
            first = self._thought.first_start_id
            if first is not None:
                allow(words, first)
        if has_token(words, self._eos[0]):
            self._settle_end(words)

    def _settle_end(self, words: npt.NDArray[np.int32]) -> None:
        if not self._ignore_end and self._num_output >= self._min_tokens:
            for token_id in self._ends:
                allow(words, token_id)
            return
        for token_id in self._ends:
            forbid(words, token_id)
        if not words.any():
            for token_id in self._eos:
                allow(words, token_id)

    def _forced_id(self) -> int:
        if self._thought is not None and self._thought.forced:
            return self._thought.forced[-1]
        return self._run[0]

    def _allows(self, token_id: int) -> bool:
        matcher = self._matcher
        if matcher is None or not matcher.accept(token_id):
            return False
        matcher.rollback(1)
        return True
