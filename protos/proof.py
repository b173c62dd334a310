"""Proof that two processes of one cluster know its secret, which never travels.

Each side sends a fresh random number, and a mac over both of them and what it says: no mac can be
used twice. Workers greet each other with it (`kvtransfer/hello.py`), and gateways workers::

    gateway                              worker
    GatewayHello(nonce g)      ──>
                               <──       Challenge(nonce w, mac)     knows the secret
    mac                        ──>                                   knows it too
                               <──       WorkerHello, and all that follows

So no prompt goes to who does not know the secret, and nobody else gets answers, load reports or
what is cached.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Final, Protocol

from baton.protos import worker_pb2 as pb
from baton.protos.errors import AuthenticationError, TransferError

NONCE_BYTES: Final = 32


def new_nonce() -> bytes:
    """Never the same twice."""
    return secrets.token_bytes(NONCE_BYTES)


def join_nonces(caller: str, caller_nonce: bytes, called: str, called_nonce: bytes) -> bytes:
    """Both, for a mac. Raises TransferError for one that is none; the names are for its words."""
    for name, nonce in ((caller, caller_nonce), (called, called_nonce)):
        if len(nonce) != NONCE_BYTES:
            raise TransferError(
                f"the nonce of {name} has {len(nonce)} bytes, but must have {NONCE_BYTES}"
            )
    return caller_nonce + called_nonce


def make_mac(secret: str, part: str, nonces: bytes, content: bytes) -> bytes:
    """HMAC-SHA256 over who speaks (`part`), both nonces, and what is said."""
    said = b"baton-kv-1 " + part.encode() + b" " + nonces + content
    return hmac.digest(secret.encode(), said, "sha256")


def check_mac(theirs: bytes, mine: bytes, *, here: str, there: str) -> None:
    """Raises AuthenticationError unless they are equal; `here` and `there` are the two's names."""
    if not hmac.compare_digest(theirs, mine):
        raise AuthenticationError(
            f"{there} does not know the cluster secret of {here}: set the same `secret` for all"
            " workers and gateways",
            param="secret",
        )


class ConnectCall(Protocol):
    """The stream as gRPC gives it."""

    async def read(self) -> object: ...
    async def write(self, request: pb.GatewayMessage, /) -> None: ...


class GatewayGreeting:
    """The gateway's side of one `Connect` stream, in the order of its methods."""

    def __init__(self, secret: str, gateway_id: str, version: str) -> None:
        self._secret = secret
        self._hello = pb.GatewayHello(gateway_id=gateway_id, version=version, nonce=new_nonce())

    def hello(self) -> pb.GatewayMessage:
        return pb.GatewayMessage(hello=self._hello)

    def answer(self, theirs: pb.Challenge) -> pb.GatewayMessage:
        """Raises AuthenticationError unless the worker proved the secret, TransferError."""
        mine, worker = self._hello, theirs.worker_id
        nonces = join_nonces(mine.gateway_id, mine.nonce, worker, theirs.nonce)
        expected = make_mac(self._secret, "worker", nonces, unsigned(theirs))
        check_mac(theirs.mac, expected, here=mine.gateway_id, there=worker or "the worker")
        return pb.GatewayMessage(mac=make_mac(self._secret, "gateway", nonces, content(mine)))

    async def run(self, call: ConnectCall) -> pb.WorkerMessage | object:
        """What the worker says first after the greeting; something else where it ended the stream.
        AuthenticationError.
        """
        await call.write(self.hello())
        message = await call.read()
        if isinstance(message, pb.WorkerMessage):
            await call.write(self.answer(message.challenge))
            message = await call.read()
        return message


class WorkerGreeting:
    """The worker's side of one `Connect` stream, in the order of its methods."""

    def __init__(self, secret: str, worker_id: str, incarnation: str) -> None:
        self._secret = secret
        self._mine = pb.Challenge(worker_id=worker_id, incarnation=incarnation, nonce=new_nonce())
        self._theirs = pb.GatewayHello()
        self._nonces = b""

    def challenge(self, first: pb.GatewayMessage) -> pb.WorkerMessage:
        """TransferError for a nonce that is not one."""
        mine, theirs = self._mine, first.hello
        self._theirs = theirs
        self._nonces = join_nonces(theirs.gateway_id, theirs.nonce, mine.worker_id, mine.nonce)
        mine.mac = make_mac(self._secret, "worker", self._nonces, unsigned(mine))
        return pb.WorkerMessage(challenge=mine)

    def check(self, second: pb.GatewayMessage) -> None:
        """Raises AuthenticationError unless the gateway proved the secret."""
        expected = make_mac(self._secret, "gateway", self._nonces, content(self._theirs))
        gateway = self._theirs.gateway_id or "a gateway"
        check_mac(second.mac, expected, here=self._mine.worker_id, there=gateway)


def unsigned(message: pb.Challenge | pb.PeerHello | pb.ProfileRequest) -> bytes:
    """All of the message but its mac."""
    bare = type(message)()
    bare.CopyFrom(message)  # type: ignore[arg-type]  # of its own type
    bare.ClearField("mac")
    return content(bare)


def content(
    message: pb.GatewayHello | pb.Challenge | pb.PeerHello | pb.ProfileRequest,
) -> bytes:
    """The same bytes wherever it is read."""
    return message.SerializeToString(deterministic=True)
