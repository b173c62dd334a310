"""What is asked for without the package, or wrongly, is refused by its name."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.kvtransfer.lmcache_server import BLOCKS, make_place
from tests.kvtransfer.sides import LAYOUT

from baton.cluster.config import load_config
from baton.cluster.lmcache import check_lmcache, uses_lmcache, with_lmcache
from baton.kvtransfer.connector import PeerKey
from baton.kvtransfer.factory import make_connector
from baton.kvtransfer.lmcache.config import LMCacheConfig
from baton.kvtransfer.lmcache.server import LMCacheServer
from baton.kvtransfer.tiers.config import TierConfig
from baton.kvtransfer.tiers.factory import make_tiers
from baton.kvtransfer.tiers.tier import TierSpace
from baton.protos.errors import ConfigError

ADDRESS = "tcp://127.0.0.1:5555"
BOTH = {
    f"{pool}.{key}": (value, "test")
    for pool in ("prefill", "decode")
    for key, value in (("worker.connector", "lmcache"), ("engine.kv_tiers.cpu_gib", 1.0))
}


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were not installed."""

    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setitem(sys.modules, "lmcache", None)
    monkeypatch.setattr("baton.kvtransfer.lmcache.config.version", nothing)


def connector() -> None:
    pool = torch.zeros(4, *LAYOUT.block_shape)
    key = PeerKey("worker", "1")
    make_connector(f"lmcache {ADDRESS}", pool, LAYOUT, key, lambda *_: None, "127.0.0.1")


def tier() -> None:
    memory = torch.zeros((2, BLOCKS.block_bytes), dtype=torch.uint8)
    space = TierSpace(memory=memory, layout=BLOCKS, model_digest="weights")
    make_tiers(TierConfig(cpu_gib=1.0, lmcache=ADDRESS), space)


def server() -> None:
    LMCacheServer(LMCacheConfig()).start()


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize("use", [connector, tier, server])
def test_without_the_package_every_use_says_what_to_install(use: Callable[[], None]) -> None:
    with pytest.raises(ConfigError, match=r"not installed: install baton-serve\[lmcache\]"):
        use()


@pytest.mark.usefixtures("hidden")
def test_without_the_package_a_cluster_refuses_before_it_starts() -> None:
    check_lmcache(load_config(None, {}))
    with pytest.raises(ConfigError, match=r"prefill.worker.connector asks for LMCache") as refused:
        check_lmcache(load_config(None, BOTH))
    assert refused.value.param == "prefill.worker.connector"
    shared = {"engine.kv_tiers.cpu_gib": (1.0, "x"), "engine.kv_tiers.lmcache": ("auto", "x")}
    with pytest.raises(ConfigError) as refused:
        check_lmcache(load_config(None, shared))
    assert refused.value.param == "prefill.engine.kv_tiers.lmcache"


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.kvtransfer.lmcache.config.version", lambda _: "0.5.7")
    with pytest.raises(ConfigError, match=r"is 0\.5\.7: install .*0\.5\.6"):
        make_place(ADDRESS)


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("lmcache: {address: 'localhost:5555'}", "lmcache.address", "tcp://127.0.0.1:5555"),
        ("lmcache: {memory_gib: 0}", "lmcache.memory_gib", "more than 0"),
        ("lmcache: {storage: ['/mnt/kv']}", "lmcache.storage", "must be JSON"),
        ("lmcache: {size: 3}", "lmcache.size", "memory_gib"),
        ("decode: {worker: {lmcache: here}}", "decode.worker.lmcache", "must be the address"),
        ("engine: {kv_tiers: {lmcache: auto}}", "engine.kv_tiers.cpu_gib", "lmcache"),
        ("engine: {kv_tiers: {cpu_gib: 1, lmcache: x}}", "engine.kv_tiers.lmcache", "address"),
    ],
)
def test_bad_input_is_refused_by_its_field(
    text: str, field: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "baton.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as refused:
        load_config(path, {})
    assert refused.value.param == field


def test_workers_are_told_where_the_server_is() -> None:
    plain = load_config(None, {})
    assert not uses_lmcache(plain)
    assert with_lmcache(plain) == plain
    config = load_config(None, BOTH | {"decode.engine.kv_tiers.lmcache": ("auto", "test")})
    assert uses_lmcache(config)
    with pytest.raises(ConfigError, match=r"lmcache\.address is empty"):
        with_lmcache(config)
    config = load_config(
        None,
        BOTH
        | {"decode.engine.kv_tiers.lmcache": ("auto", "test")}
        | {"lmcache.address": (ADDRESS, "test"), "prefill.worker.lmcache": (ADDRESS + "1", "test")},
    )
    told = with_lmcache(config)
    assert told.decode.worker.wire == f"lmcache {ADDRESS}"
    assert told.decode.engine.kv_tiers.lmcache == ADDRESS
    assert told.prefill.worker.wire == f"lmcache {ADDRESS}1"
    assert not told.prefill.engine.kv_tiers.lmcache
    assert not uses_lmcache(told)
