"""Compiles grammars on a bounded pool, once each as long as the bounded cache remembers them."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from baton.engine.grammar.backend import CompiledGrammar
from baton.engine.grammar.choose import backend_for, compile_grammar
from baton.engine.grammar.vocabulary import Vocabulary
from baton.protos.clock import Clock
from baton.protos.constraints import Grammar, GrammarBackend
from baton.protos.errors import BatonError, GrammarError, OverloadedError

COMPILE_LIMIT_S: Final = 10.0
MAX_CACHED: Final = 256
MAX_PENDING: Final = 256
THREADS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilerStatistics:
    """Counts since the engine was built. `compiled` by backend; `refused` by `GrammarError.reason`,
    or "failed" where it was not the grammar's fault. `compile_s`: the sum over both, and the
    longest. A request for a cached or already compiling grammar is a hit."""

    compiled: Mapping[str, int]
    refused: Mapping[str, int]
    num_hits: int
    num_cached: int
    num_pending: int
    compile_s: float
    max_compile_s: float


class GrammarCompiler:
    """From any thread. A future's callbacks run on the pool's threads, or at once."""

    def __init__(self, vocabulary: Vocabulary, clock: Clock) -> None:
        self._vocabulary = vocabulary
        self._clock = clock
        # Threads start with the first grammar. Apart, because xgrammar's process takes one at a
        # time, and seconds to start.
        self._pools = {
            GrammarBackend.GUIDANCE: ThreadPoolExecutor(THREADS, thread_name_prefix="guidance"),
            GrammarBackend.XGRAMMAR: ThreadPoolExecutor(1, thread_name_prefix="xgrammar"),
        }
        self._lock = threading.Lock()
        # By grammar without its param; refusals are remembered too. Least recently used first.
        self._cache: OrderedDict[Grammar, Future[CompiledGrammar]] = OrderedDict()
        self._num_pending = 0
        self._compiled: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._num_hits = 0
        self._compile_s = 0.0
        self._max_compile_s = 0.0

    def compile(self, grammar: Grammar) -> Future[CompiledGrammar]:
        """Its result: the compiled grammar, or GrammarError without a param.

        Raises OverloadedError when too many are waiting to be compiled, GrammarError for a kind
        that the backend which was asked for does not read.
        """
        key = replace(grammar, param="")
        pool = self._pools[backend_for(grammar)]
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
                self._num_hits += 1
                return found
            if self._num_pending >= MAX_PENDING:
                raise OverloadedError(
                    f"{self._num_pending} grammars are being compiled", param=grammar.param
                )
            self._num_pending += 1
            future = self._cache[key] = pool.submit(self._compile, key)
            while len(self._cache) > MAX_CACHED:
                # One that is still compiling goes on for those who wait for it.
                self._cache.popitem(last=False)
        return future

    def statistics(self) -> CompilerStatistics:
        with self._lock:
            return CompilerStatistics(
                compiled=dict(self._compiled),
                refused=dict(self._refused),
                num_hits=self._num_hits,
                num_cached=len(self._cache),
                num_pending=self._num_pending,
                compile_s=self._compile_s,
                max_compile_s=self._max_compile_s,
            )

    def close(self) -> None:
        """Ends the compiling process; what waits to be compiled is cancelled."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        self._vocabulary.close()

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        started_s = self._clock.now_s()
        refusal, backend = "failed", ""
        try:
            compiled = compile_grammar(grammar, self._vocabulary, limit_s=COMPILE_LIMIT_S)
            backend = compiled.backend
            return compiled
        except GrammarError as error:
            refusal = error.reason
            raise
        except BatonError:
            self._forget(grammar)
            raise
        finally:
            took_s = self._clock.now_s() - started_s
            with self._lock:
                self._num_pending -= 1
                if backend:
                    self._compiled[backend] += 1
                else:
                    self._refused[refusal] += 1
                self._compile_s += took_s
                self._max_compile_s = max(self._max_compile_s, took_s)

    def _forget(self, grammar: Grammar) -> None:
        """A failure that is not the grammar's own may not repeat."""
        with self._lock:
            self._cache.pop(grammar, None)
