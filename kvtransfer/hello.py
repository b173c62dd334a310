"""The greeting of two workers that want to exchange KV: who they are and whether their KV fits.

::

    caller                                   called
    Challenge(nonce c)            ──>
                                  <──        Challenge(nonce s, mac)      knows the secret
    PeerHello(metadata, mac)      ──>                                     knows it too: connects
                                  <──        PeerHello(metadata, mac)

A connector's metadata opens its whole pool to whoever holds it, so neither side sends it before the
other has proved that it knows the cluster's secret. Each mac covers both nonces, so that none can
be used twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from baton import __version__
from baton.kvtransfer.connector import PeerInfo, PeerKey
from baton.kvtransfer.group import rank_key
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.mapping import plan_map
from baton.protos import worker_pb2 as pb
from baton.protos.errors import LayoutMismatchError
from baton.protos.proof import check_mac, join_nonces, make_mac, new_nonce, unsigned

Message = TypeVar("Message", pb.Challenge, pb.PeerHello)

_MAX_DIFFERENCES: Final = 8
_MAX_RANKS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What one worker says of itself. `secret` is shared by the cluster and never sent.

    `model_config` is the text of config.json; `adapters` maps names to digests.
    """

    info: PeerInfo
    connector: str
    model_digest: str
    model_config: str = "{}"
    adapters: Mapping[str, str] = field(default_factory=dict)
    secret: str = ""

    def hello(self, session: int) -> pb.PeerHello:
        """The greeting, without its mac."""
        info = self.info
        return pb.PeerHello(
            worker_id=info.key.worker_id,
            incarnation=info.key.incarnation,
            version=__version__,
            model_digest=self.model_digest,
            connector=self.connector,
            agent_metadata=info.agent_metadata,
            kv_layout=info.layout.to_json(),
            pool_address=info.pool_address,
            num_blocks=info.num_blocks,
            device_id=info.device_id,
            session=session,
            model_config=self.model_config,
            adapters=self.adapters,
            ranks=[
                pb.PeerRank(
                    agent_metadata=rank.agent_metadata,
                    kv_layout=rank.layout.to_json(),
                    pool_address=rank.pool_address,
                    num_blocks=rank.num_blocks,
                    device_id=rank.device_id,
                )
                for rank in info.ranks
            ],
        )

    def challenge(self) -> pb.Challenge:
        key = self.info.key
        return pb.Challenge(
            worker_id=key.worker_id,
            incarnation=key.incarnation,
            version=__version__,
            nonce=new_nonce(),
        )


def read_identity(
    info: PeerInfo, *, connector: str, model_dir: str, model_digest: str, secret: str
) -> Identity:
    """The identity of a worker that serves the model in `model_dir`. OSError if it is not there."""
    return Identity(
        info=info,
        connector=connector,
        model_digest=model_digest,
        model_config=(Path(model_dir) / "config.json").read_text(encoding="utf-8"),
        secret=secret,
    )


class CallerHandshake:
    """The calling side of one connection, in the order of its methods. `session` is its number."""

    def __init__(self, identity: Identity, session: int) -> None:
        self._identity = identity
        self._session = session
        self._mine = identity.challenge()
        self._nonces = b""

    def challenge(self) -> pb.Challenge:
        return self._mine

    def hello(self, theirs: pb.Challenge) -> pb.PeerHello:
        """Raises AuthenticationError unless the other proved the secret, TransferError for
        another version.
        """
        self._nonces = _nonces(self._mine, theirs)
        _prove(self._identity, "challenge", self._nonces, theirs)
        _check_version(self._identity, theirs)
        return _signed(self._identity, "caller", self._nonces, self._identity.hello(self._session))

    def accept(self, theirs: pb.PeerHello) -> PeerInfo:
        """What to connect to. AuthenticationError, LayoutMismatchError."""
        _prove(self._identity, "called", self._nonces, theirs)
        check_peer_hello(self._identity, theirs)
        return peer_info_from_hello(theirs, self._session)


class CalledHandshake:
    """The called side of one connection, in the order of its methods."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._nonces = b""
        self._session = 0

    def challenge(self, theirs: pb.Challenge) -> pb.Challenge:
        """TransferError for another version or a nonce that is not one."""
        _check_version(self._identity, theirs)
        mine = self._identity.challenge()
        self._nonces = _nonces(theirs, mine)
        return _signed(self._identity, "challenge", self._nonces, mine)

    def accept(self, theirs: pb.PeerHello) -> PeerInfo:
        """What to connect to. AuthenticationError, LayoutMismatchError."""
        _prove(self._identity, "caller", self._nonces, theirs)
        check_peer_hello(self._identity, theirs)
        self._session = theirs.session
        return peer_info_from_hello(theirs, theirs.session)

    def hello(self) -> pb.PeerHello:
        return _signed(self._identity, "called", self._nonces, self._identity.hello(self._session))


def peer_info_from_hello(hello: pb.PeerHello, session: int) -> PeerInfo:
    """What the connector needs to know of the peer. LayoutMismatchError if it makes no sense."""
    key = PeerKey(hello.worker_id, hello.incarnation, session)
    if len(hello.ranks) >= _MAX_RANKS:
        raise LayoutMismatchError(f"{hello.worker_id} has over {_MAX_RANKS} ranks", param="ranks")
    others = tuple(_peer_info(rank, rank_key(key, i)) for i, rank in enumerate(hello.ranks, 1))
    return replace(_peer_info(hello, key), ranks=others)


def _peer_info(said: pb.PeerHello | pb.PeerRank, key: PeerKey) -> PeerInfo:
    return PeerInfo(
        key=key,
        agent_metadata=said.agent_metadata,
        layout=KVLayout.from_json(said.kv_layout),
        pool_address=said.pool_address,
        num_blocks=said.num_blocks,
        device_id=said.device_id,
    )


def check_peer_hello(ours: Identity, theirs: pb.PeerHello) -> None:
    """Raises LayoutMismatchError that says in words why these two must not exchange KV."""
    mine = ours.info.key.worker_id
    problem = ""
    if theirs.connector != ours.connector:
        problem = f"connector is {ours.connector!r} here and {theirs.connector!r} there"
    elif theirs.model_digest != ours.model_digest:
        problem = _model_difference(ours.model_config, theirs.model_config)
    else:
        problem = _adapter_difference(ours.adapters, theirs.adapters)
    if problem:
        raise LayoutMismatchError(
            f"{mine} and {theirs.worker_id} cannot exchange KV: {problem}", param="peer"
        )
    # Blocks travel one way only, but both sides check, so that each can say what is wrong.
    plan_map(ours.info.layout, KVLayout.from_json(theirs.kv_layout))


def _model_difference(mine: str, theirs: str) -> str:
    """Which settings of the model differ, or that only the weights do."""
    here, there = _read_config(mine), _read_config(theirs)
    names = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
    if not names:
        return "their weights differ, under the same configuration"
    said = [
        f"{name} is {json.dumps(here.get(name))} here and {json.dumps(there.get(name))} there"
        for name in names[:_MAX_DIFFERENCES]
    ]
    if len(names) > _MAX_DIFFERENCES:
        said.append(f"and {len(names) - _MAX_DIFFERENCES} more")
    return "their models differ: " + "; ".join(said)


def _read_config(text: str) -> dict[str, object]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise LayoutMismatchError(f"a model_config is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise LayoutMismatchError("a model_config is not a JSON object")
    return values


def _adapter_difference(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Adapters that both have must be the same; one that only one has is its own business."""
    differing = sorted(name for name in mine if theirs.get(name, mine[name]) != mine[name])
    return f"these adapters differ: {', '.join(differing)}" if differing else ""


def _check_version(ours: Identity, theirs: pb.Challenge) -> None:
    if theirs.version != __version__:
        raise LayoutMismatchError(
            f"{theirs.worker_id} has version {theirs.version!r}, {ours.info.key.worker_id} has"
            f" {__version__!r}: their KV caches cannot be exchanged",
            param="version",
        )


def _nonces(caller: pb.Challenge, called: pb.Challenge) -> bytes:
    return join_nonces(caller.worker_id, caller.nonce, called.worker_id, called.nonce)


def _signed(ours: Identity, part: str, nonces: bytes, message: Message) -> Message:
    message.mac = make_mac(ours.secret, part, nonces, unsigned(message))
    return message


def _prove(ours: Identity, part: str, nonces: bytes, theirs: pb.Challenge | pb.PeerHello) -> None:
    expected = make_mac(ours.secret, part, nonces, unsigned(theirs))
    check_mac(theirs.mac, expected, here=ours.info.key.worker_id, there=theirs.worker_id)
