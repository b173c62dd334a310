"""Asks a worker for a profile, over its own API, with a proof of the cluster's secret."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc

from baton.gateway.seam import ProfileTrace
from baton.protos import worker_pb2 as pb
from baton.protos.errors import NotFoundError, UnavailableError, error_from_code
from baton.protos.proof import make_mac, new_nonce, unsigned
from baton.protos.server import GRPC_OPTIONS
from baton.protos.types import Member
from baton.protos.worker_pb2_grpc import WorkerStub

# What writing and sending a trace may take beside recording it.
WRITING_S = 120.0


def find_worker(workers: Sequence[Member], name: str) -> Member:
    """The one with this id, or whose id begins so. Raises NotFoundError."""
    found = [w for w in workers if w.worker_id == name]
    found = found or [w for w in workers if name and w.worker_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} workers' ids begin with" if found else "no worker's id begins with"
    known = ", ".join(sorted(w.worker_id for w in workers)) or "none"
    raise NotFoundError(f"{what} {name[:128]!r}; workers are: {known}", param="worker")


async def profile_worker(
    worker: Member, secret: str, *, seconds: float, steps: int
) -> ProfileTrace:
    """A trace of its next steps: Chrome's format, gzip. Raises what the worker refuses with, and
    UnavailableError where it cannot be reached.
    """
    data, num_steps = bytearray(), 0
    async with grpc.aio.insecure_channel(worker.grpc_address, options=GRPC_OPTIONS) as channel:
        call = WorkerStub(channel).Profile(timeout=seconds + WRITING_S)
        try:
            nonce = new_nonce()
            await call.write(pb.ProfileMessage(challenge=pb.Challenge(nonce=nonce)))
            answers: AsyncIterator[pb.ProfileAnswer] = aiter(call)
            nonces = nonce + (await anext(answers)).challenge.nonce
            request = pb.ProfileRequest(seconds=seconds, steps=steps)
            request.mac = make_mac(secret, "profile", nonces, unsigned(request))
            await call.write(pb.ProfileMessage(request=request))
            async for answer in answers:
                data += answer.trace
                num_steps = answer.num_steps
        except grpc.aio.AioRpcError as error:
            metadata = dict([*(error.trailing_metadata() or ())])
            code, said = str(metadata.get("x-baton-error-code", "")), error.details() or ""
            if not code:
                raise UnavailableError(f"{worker.worker_id} gave no profile: {said}") from error
            raise error_from_code(code, f"{worker.worker_id}: {said}") from error
    return ProfileTrace(worker.worker_id, num_steps, bytes(data))
