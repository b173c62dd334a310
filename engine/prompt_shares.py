"""Shares what decodes leave of a step's token budget among prompts."""

from __future__ import annotations

from collections.abc import Callable

from baton.engine.batch import ScheduledRow
from baton.engine.request import Request
from baton.engine.waiting import WaitingQueue


def share_prefills(
    prefilling: list[Request],
    queue: WaitingQueue,
    budget: int,
    admit: Callable[[Request], bool] | None,
) -> list[ScheduledRow]:
    """Chunks of prompts, those in the batch and those waiting, in one order.

    admit: takes the head of the queue out of it, into `prefilling` or elsewhere; False: nobody can
        be admitted any more. None: nobody can be from the start.
    """
    rows: list[ScheduledRow] = []
    index = 0
    while budget > 0:
        request = prefilling[index] if index < len(prefilling) else None
        head = queue.first if admit is not None else None
        if admit and head is not None and (request is None or head.order < request.order):
            admit = admit if admit(head) else None
            continue
        if request is None:
            break
        index += 1
        if request.ends_with_pending:
            continue
        wanted = request.num_uncomputed_tokens
        granted = min(wanted, budget)
        rows.append(
            ScheduledRow(request=request, num_new_tokens=granted, samples=granted == wanted)
        )
        budget -= granted
    return rows
