"""Connectors by the name that configuration gives."""

from __future__ import annotations

from collections.abc import Callable

import torch

from baton.kvtransfer.collective import CollectiveConnector
from baton.kvtransfer.connector import Connector, Notice, PeerKey
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.lmcache.channel import LMCacheConnector
from baton.kvtransfer.nixl import NixlConnector
from baton.protos.errors import ConfigError

CONNECTORS = ("nixl", "nccl", "lmcache")


def make_connector(
    name: str,
    pool: torch.Tensor,
    layout: KVLayout,
    key: PeerKey,
    on_notice: Callable[[PeerKey, Notice], None],
    host: str,
) -> Connector:
    """Builds the connector and registers `pool` with it. `host` is this worker's address.

    The name of LMCache's is followed by a space and its server's address. Raises ConfigError for an
    unknown name.
    """
    name, _, address = name.partition(" ")
    if name == "nixl":
        return NixlConnector(pool, layout, key, on_notice=on_notice)
    if name == "nccl":
        return CollectiveConnector(pool, layout, key, on_notice=on_notice, host=host)
    if name == "lmcache":
        return LMCacheConnector(pool, layout, key, address=address, on_notice=on_notice, host=host)
    raise ConfigError(
        f"connector is {name!r}, but must be one of {', '.join(CONNECTORS)}", param="connector"
    )
