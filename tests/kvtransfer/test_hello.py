"""Greetings: who may connect, and what is said when two do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.kvtransfer.sides import LAYOUT

from baton.kvtransfer.connector import PeerInfo, PeerKey
from baton.kvtransfer.hello import CalledHandshake, CallerHandshake, Identity
from baton.protos import worker_pb2 as pb
from baton.protos.errors import AuthenticationError, LayoutMismatchError, TransferError


def identity(name: str, **changes: object) -> Identity:
    info = PeerInfo(PeerKey(name, "1"), b"opens the pool", LAYOUT, 4096, 8, 0)
    settings: dict[str, object] = {
        "info": info,
        "connector": "nixl",
        "model_digest": "d",
        "model_config": '{"rope_theta": 10000.0, "num_hidden_layers": 3}',
        "secret": "s3cret",
    }
    return Identity(**{**settings, **changes})  # type: ignore[arg-type]


def greet(caller: Identity, called: Identity, session: int = 1) -> tuple[PeerInfo, PeerInfo]:
    """What the called side and the calling side connect to."""
    ours, theirs = CallerHandshake(caller, session), CalledHandshake(called)
    challenge = theirs.challenge(ours.challenge())
    assert challenge.nonce != ours.challenge().nonce
    caller_info = theirs.accept(ours.hello(challenge))
    return caller_info, ours.accept(theirs.hello())


def test_both_learn_the_other_and_the_session() -> None:
    caller, called = greet(identity("d"), identity("p"), session=7)
    assert (caller.key, called.key) == (PeerKey("d", "1", 7), PeerKey("p", "1", 7))
    assert called.agent_metadata == b"opens the pool"
    assert (called.layout, called.pool_address, called.num_blocks) == (LAYOUT, 4096, 8)


@pytest.mark.parametrize(("mine", "theirs"), [("a", "b"), ("", "b"), ("a", "")])
def test_without_the_secret_nobody_gets_metadata(mine: str, theirs: str) -> None:
    ours = CallerHandshake(identity("d", secret=mine), 1)
    challenge = CalledHandshake(identity("p", secret=theirs)).challenge(ours.challenge())
    with pytest.raises(AuthenticationError, match="p does not know the cluster secret of d"):
        ours.hello(challenge)


def test_a_forged_or_repeated_hello_is_refused() -> None:
    ours, theirs = CallerHandshake(identity("d"), 1), CalledHandshake(identity("p"))
    hello = ours.hello(theirs.challenge(ours.challenge()))
    forged = pb.PeerHello()
    forged.CopyFrom(hello)
    forged.pool_address += 1
    with pytest.raises(AuthenticationError):
        theirs.accept(forged)
    later = CalledHandshake(identity("p"))
    later.challenge(ours.challenge())
    with pytest.raises(AuthenticationError):
        later.accept(hello)
    with pytest.raises(AuthenticationError):
        ours.accept(hello)


def test_what_differs_is_said() -> None:
    other_config = '{"rope_theta": 500000.0, "num_hidden_layers": 3}'
    for changes, words in (
        ({"connector": "nccl"}, "connector is 'nccl' here and 'nixl' there"),
        ({"model_digest": "e"}, "their weights differ, under the same configuration"),
        (
            {"model_digest": "e", "model_config": other_config},
            "rope_theta is 500000.0 here and 10000.0 there",
        ),
        ({"adapters": {"sql": "2", "own": "3"}}, "these adapters differ: sql"),
    ):
        mine = identity("d", adapters={"sql": "1"})
        with pytest.raises(LayoutMismatchError, match=words):
            greet(mine, identity("p", **changes))


def test_pools_that_cannot_be_mapped_are_refused() -> None:
    info = replace(identity("p").info, layout=replace(LAYOUT, head_dim=16))
    with pytest.raises(LayoutMismatchError, match="head size 16 and 8"):
        greet(identity("d"), identity("p", info=info))


def test_another_version_and_a_short_nonce_are_refused() -> None:
    called = CalledHandshake(identity("p"))
    challenge = identity("d").challenge()
    challenge.version = "0.0.0"
    with pytest.raises(LayoutMismatchError, match=r"version '0\.0\.0'"):
        called.challenge(challenge)
    challenge = identity("d").challenge()
    challenge.nonce = b"short"
    with pytest.raises(TransferError, match="5 bytes"):
        called.challenge(challenge)
