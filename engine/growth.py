"""How many more KV blocks the running requests are going to ask for, as far as one can know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from baton.engine.request import Request, RequestState

# Of each output's length in the running mean.
_WEIGHT: Final = 1 / 32


class ExpectedGrowth:
    """Outputs are expected to be as long as recent ones were on average, or up to their limit.

    What admission leaves free for it keeps decodes from being preempted, and so prompts from being
    computed twice; SGLang's ratio of new tokens serves the same end. Whatever the mean, a
    decode is expected to need a block.
    """

    def __init__(self, block_size: int, expected_output_tokens: int) -> None:
        self._block_size = block_size
        self._mean_tokens = float(expected_output_tokens)

    def blocks(self, requests: Iterable[Request]) -> int:
        """Beyond those of the requests' known tokens."""
        size, mean = self._block_size, int(self._mean_tokens)
        needed = 0
        for request in requests:
            if not request.hold:
                end = min(request.max_total_tokens, request.num_prompt_tokens + mean)
                least = 1 if request.state is RequestState.DECODING else 0
                needed += max(-(-end // size) - -(-request.num_tokens // size), least)
        return needed

    def headroom(self, running: Iterable[Request], candidate: Request) -> int:
        """Blocks to be left when the candidate has those of its known tokens; none beside nobody:
        the first in line need not wait for what may never be used.
        """
        beside = tuple(running)
        return self.blocks((*beside, candidate)) if beside else 0

    def finished(self, request: Request) -> None:
        """Learns its output's length. One cut by a limit below the mean says nothing about it."""
        length = request.num_output_tokens
        cut = len(request.token_ids) >= request.max_total_tokens
        if not cut or length > self._mean_tokens:
            self._mean_tokens += _WEIGHT * (length - self._mean_tokens)
