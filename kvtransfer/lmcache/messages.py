"""What workers and the part of Baton in an LMCache server say to each other: MessagePack.

Objects are named by a space (whose blocks are interchangeable) and a key of 16 bytes. Their bytes
never travel: both sides have the server's shared memory mapped, and tell each other offsets in it.

Why not LMCache's own calls, which name an object by the tokens of its whole prefix: a tier knows
blocks by their hashes, asks for any run of them, and would have to send every token again for each
of five calls. A ticket ends what a load or a store has begun; the server forgets it after a while.
"""

from __future__ import annotations

from typing import Final

import msgspec

METHOD: Final = "baton.kv"
# Both sides must have the same.
PROTOCOL: Final = 1
KEY_BYTES: Final = 16


class Hello(msgspec.Struct, tag=True):
    """Who are you?"""


class Lookup(msgspec.Struct, tag=True):
    """How many leading keys are there? Those in slower storage are brought up for a later load."""

    server: str
    space: str
    num_bytes: int
    keys: bytes
    wait_s: float


class Load(msgspec.Struct, tag=True):
    """Lock the leading keys that are there and say where they are."""

    server: str
    space: str
    num_bytes: int
    keys: bytes
    wait_s: float


class EndLoad(msgspec.Struct, tag=True):
    """They have been read; with `delete` nobody needs them any more."""

    server: str
    ticket: str
    delete: bool = False


class Store(msgspec.Struct, tag=True):
    """Make room for those of these keys that are not there."""

    server: str
    space: str
    num_bytes: int
    keys: bytes


class EndStore(msgspec.Struct, tag=True):
    """They have been written. Without this, nobody will ever see them."""

    server: str
    ticket: str


class Welcome(msgspec.Struct, tag=True):
    """`server` names this run of the server, of whose memory nothing is valid in another one;
    `instance` names it over all runs, if it was told so."""

    server: str
    instance: str
    protocol: int
    version: str
    shm_name: str
    pool_bytes: int


class Count(msgspec.Struct, tag=True):
    """How many keys."""

    count: int


class Places(msgspec.Struct, tag=True):
    """`offsets[i]` in shared memory is key number `indices[i]`'s object. `present`: how many of the
    keys were there already (of a store)."""

    ticket: str
    indices: list[int]
    offsets: list[int]
    present: int = 0


class Gone(msgspec.Struct, tag=True):
    """The request was for an earlier run of this server."""


Request = Hello | Lookup | Load | EndLoad | Store | EndStore
Reply = Welcome | Count | Places | Gone

_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """What `decode_request` and `decode_reply` read."""
    return msgspec.msgpack.encode(message)


def decode_request(data: bytes) -> Request:
    """msgspec.ValidationError if it is none."""
    return _requests.decode(data)


def decode_reply(data: bytes) -> Reply:
    """msgspec.ValidationError if it is none."""
    return _replies.decode(data)


def split_keys(keys: bytes) -> list[bytes]:
    """The keys of a message. ValueError if their length is not a whole number of keys."""
    if len(keys) % KEY_BYTES:
        raise ValueError(f"{len(keys)} bytes are no keys of {KEY_BYTES} bytes")
    return [keys[i : i + KEY_BYTES] for i in range(0, len(keys), KEY_BYTES)]
