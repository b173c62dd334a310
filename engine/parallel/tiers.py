"""The tiers of a rank other than 0: its part of every block, moved when rank 0 says so."""

from __future__ import annotations

from typing import Any

from baton.engine.batch import BlockStore
from baton.engine.config import EngineConfig
from baton.engine.tiers.copier import Copier
from baton.engine.tiers.ranks import changes_to_json
from baton.engine.tiers.space import open_space
from baton.kvtransfer.tiers.tier import Tier
from baton.protos.errors import TransferError


class RankTiers:
    """Host memory and tiers like rank 0's, once it asks for them. See `engine.tiers.ranks`.

    Calls may come from several threads, but one at a time for each direction of copies and tier.
    """

    def __init__(self, config: EngineConfig, store: BlockStore, model_digest: str) -> None:
        self._config = config
        self._store = store
        self._model_digest = model_digest
        self._copier: Copier | None = None
        self._tiers: list[Tier] = []

    def do(self, message: dict[str, Any]) -> dict[str, Any]:
        """One of rank 0's commands; the answer. Raises BatonError."""
        match message["op"]:
            case "tiers_open":
                space, self._tiers = open_space(self._config, self._store, self._model_digest)
                self._copier = Copier(self._store.tensor, space.memory)
                return {"changes": [changes_to_json(t.drain_changes()) for t in self._tiers]}
            case "tiers_read":
                self._copies().read(message["blocks"], message["slots"])
            case "tiers_write":
                self._copies().write(message["slots"], message["blocks"])
            case "tiers_call":
                return self._call(message)
        return {}

    def close(self) -> None:
        for tier in self._tiers:
            tier.close()

    def _copies(self) -> Copier:
        if self._copier is None:
            raise TransferError("this rank's tiers are not open")
        return self._copier

    def _call(self, message: dict[str, Any]) -> dict[str, Any]:
        tier = self._tiers[message["tier"]]
        hashes = [bytes.fromhex(name) for name in message["hashes"]]
        match message["call"]:
            case "lookup":
                count = tier.lookup(hashes)
            case "load":
                count = tier.load(hashes, message["slots"])
            case _:
                count = tier.store(hashes, message["slots"])
        return {
            "count": count,
            "changes": changes_to_json(tier.drain_changes()),
            "num_damaged": tier.statistics().num_damaged,
        }
