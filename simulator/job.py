"""One request on its way through the simulated cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.protos.types import Member
from baton.simulator.request import TraceRequest
from baton.simulator.sequence import Sequence
from baton.simulator.worker import SimWorker


@dataclass(slots=True, eq=False)
class Job:
    """From its arrival to its last token. Times are the simulation's; -1 is not yet.

    `attempt` counts placements, so that whatever comes late from one that was given up is known.
    """

    request: TraceRequest
    attempt: int = 0
    num_emitted: int = 0
    decode: SimWorker | None = None
    prefill: SimWorker | None = None
    targets: list[Member] = field(default_factory=list)
    # Whose cache its prefill worker fetches first.
    lender: SimWorker | None = None
    # In the decode worker, and in the prefill worker.
    sequence: Sequence | None = None
    held: Sequence | None = None
    delivered_s: float = -1.0
    num_pushed: int = 0
    first_s: float = -1.0
    last_s: float = -1.0
    finish_s: float = -1.0
    num_cached: int = 0
    # Prompt tokens to compute, as the plan says.
    num_new: int = 0
    # Of them and what is cached, the tokens for which its decode worker has no blocks yet.
    num_unplaced: int = 0
    local: bool = False
    reason: str = ""
    predicted_ttft_s: float = 0.0
    error: str = ""

    @property
    def num_known(self) -> int:
        """Tokens whose KV its next worker needs."""
        return self.request.num_prompt_tokens + self.num_emitted

    @property
    def num_left(self) -> int:
        return self.request.num_output_tokens - self.num_emitted

    @property
    def ended(self) -> bool:
        return self.finish_s >= 0 or bool(self.error)
