"""The greeting of two workers that want to exchange KV: who they are and whether their KV fits."""

from __future__ import annotations

from baton import __version__
from baton.kvtransfer.connector import PeerInfo, PeerKey
from baton.kvtransfer.layout import KVLayout
from baton.protos import worker_pb2 as pb
from baton.protos.errors import LayoutMismatchError


def peer_hello(info: PeerInfo, *, connector: str, model_digest: str) -> pb.PeerHello:
    """This worker's greeting."""
    return pb.PeerHello(
        worker_id=info.key.worker_id,
        incarnation=info.key.incarnation,
        version=__version__,
        model_digest=model_digest,
        connector=connector,
        agent_metadata=info.agent_metadata,
        kv_layout=info.layout.to_json(),
        pool_address=info.pool_address,
        num_blocks=info.num_blocks,
        device_id=info.device_id,
    )


def peer_info_from_hello(hello: pb.PeerHello) -> PeerInfo:
    """What the connector needs to know of the peer."""
    return PeerInfo(
        key=PeerKey(hello.worker_id, hello.incarnation),
        agent_metadata=hello.agent_metadata,
        layout=KVLayout.from_json(hello.kv_layout),
        pool_address=hello.pool_address,
        num_blocks=hello.num_blocks,
        device_id=hello.device_id,
    )


def check_peer_hello(ours: pb.PeerHello, theirs: pb.PeerHello) -> None:
    """Raises LayoutMismatchError that says in words why these two must not exchange KV."""
    for field in ("version", "connector", "model_digest"):
        mine, other = getattr(ours, field), getattr(theirs, field)
        if mine != other:
            raise LayoutMismatchError(
                f"{theirs.worker_id} has {field} {other!r}, {ours.worker_id} has {mine!r}: "
                f"their KV caches cannot be exchanged",
                param=field,
            )
    KVLayout.from_json(ours.kv_layout).check_compatible(KVLayout.from_json(theirs.kv_layout))
