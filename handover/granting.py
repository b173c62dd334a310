"""What a reservation of blocks becomes: a session here, and a message for whoever writes them."""

from __future__ import annotations

from baton.engine.handover import Reservation
from baton.kvtransfer.session import ReceiveSession
from baton.protos import worker_pb2 as pb


def granted(reservation: Reservation, block_size: int) -> tuple[ReceiveSession, pb.Reservation]:
    """block_size: of this side's pool."""
    session = ReceiveSession(
        reservation.request_id,
        epoch=reservation.epoch,
        first_block=reservation.num_cached_tokens // block_size,
        num_blocks=len(reservation.block_ids),
    )
    message = pb.Reservation(
        request_id=reservation.request_id,
        granted=True,
        epoch=reservation.epoch,
        num_cached_tokens=reservation.num_cached_tokens,
        block_ids=reservation.block_ids,
    )
    return session, message
