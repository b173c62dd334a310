"""The messages of a link that carry requests there, and their tokens back."""

from __future__ import annotations

from collections.abc import Mapping

from baton.gateway.fleet_generation import Generation
from baton.protos import worker_pb2 as pb
from baton.protos.convert import generate_to_proto
from baton.protos.types import Member
from baton.router.plan import Plan


def submit_message(handle: int, generation: Generation, plan: Plan, now_s: float) -> pb.Submit:
    """What is left of a request, to be served as planned."""
    submit = pb.Submit(
        handle=handle,
        generate=generate_to_proto(generation.remaining_request()),
        traceparent=generation.traceparent,
    )
    if generation.deadline_s is not None:
        submit.deadline_s = max(generation.deadline_s - now_s, 0.001)
    submit.prefill.extend(map(prefill_target, plan.prefill))
    if plan.pull_from is not None:
        submit.pull_from.CopyFrom(prefill_target(plan.pull_from))
    return submit


def prefill_target(member: Member) -> pb.PrefillTarget:
    """As a worker is named to another one."""
    return pb.PrefillTarget(
        worker_id=member.worker_id, incarnation=member.incarnation, address=member.address
    )


def dispatch_tokens(live: Mapping[int, Generation], batch: pb.TokenBatch) -> None:
    """Each request's tokens to it. live: requests by handle."""
    # The hottest loop of a gateway: lists instead of repeated fields, one append a token.
    token_ids = list(batch.token_ids)
    position = 0
    for handle, count in zip(batch.handles, batch.num_tokens, strict=True):
        generation = live.get(handle)
        if generation is not None:
            if count == 1:
                generation.add_token(token_ids[position])
            else:
                generation.add_tokens(token_ids[position : position + count])
        position += count
