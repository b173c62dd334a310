"""What a request may have to wait for before it can join the batch, beside blocks and a slot."""

from __future__ import annotations

from baton.engine.adapters.gate import AdapterGate
from baton.engine.grammar.gate import GrammarGate
from baton.engine.request import Request
from baton.protos.errors import BatonError


class Gates:
    """Its grammar, once; its adapter, whenever its turn comes. Belongs to the engine's thread."""

    def __init__(self, grammars: GrammarGate, adapters: AdapterGate) -> None:
        self.grammars = grammars
        self.adapters = adapters

    def enter(self, request: Request) -> None:
        """A new request. Raises AdapterNotFoundError, GrammarError, OverloadedError; then nothing
        is kept of it."""
        self.adapters.enter(request)
        try:
            self.grammars.enter(request)
        except BatonError:
            self.adapters.leave(request)
            raise

    def leave(self, request: Request) -> None:
        """The request is over, outside the batch."""
        self.grammars.drop(request)
        self.adapters.leave(request)

    @property
    def has_work(self) -> bool:
        """Whether a step would let somebody in, or send for an adapter."""
        return self.grammars.has_done or self.adapters.has_work
