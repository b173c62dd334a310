"""What reaches one gateway, as rates since the last time that somebody asked."""

from __future__ import annotations

from baton.protos.clock import Clock
from baton.router.scaling_signals import Demand

# Weight of the newest request in the means.
_NEWEST = 0.05


class DemandMeter:
    """Counts arrivals; what of their prompts is cached, and how much they will generate, is taken
    from earlier requests. Belongs to one event loop.
    """

    def __init__(self, clock: Clock, expected_output_tokens: int) -> None:
        self._clock = clock
        self._since_s = clock.now_s()
        self._num_requests = 0
        self._tokens = 0.0
        self._squares = 0.0
        self._uncached = 1.0
        self._mean_output = float(expected_output_tokens)

    def arrived(self, num_prompt_tokens: int) -> None:
        self._num_requests += 1
        computed = num_prompt_tokens * self._uncached
        self._tokens += computed
        self._squares += computed * computed

    def planned(self, num_prompt_tokens: int, num_cached_tokens: int) -> None:
        share = 1 - num_cached_tokens / max(1, num_prompt_tokens)
        self._uncached += _NEWEST * (share - self._uncached)

    def finished(self, num_output_tokens: int) -> None:
        self._mean_output += _NEWEST * (num_output_tokens - self._mean_output)

    def take(self, waiting_requests: int, waiting_tokens: int) -> Demand:
        """The rates since the last call, which ends their period."""
        now_s = self._clock.now_s()
        elapsed_s = max(now_s - self._since_s, 1e-3)
        demand = Demand(
            requests_per_s=self._num_requests / elapsed_s,
            prompt_tokens_per_s=self._tokens / elapsed_s,
            prompt_squares_per_s=self._squares / elapsed_s,
            output_tokens_per_s=self._num_requests * self._mean_output / elapsed_s,
            waiting_requests=waiting_requests,
            waiting_tokens=waiting_tokens,
        )
        self._since_s, self._num_requests, self._tokens, self._squares = now_s, 0, 0.0, 0.0
        return demand
