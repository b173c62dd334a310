"""What a KV pool looks like in memory, as it travels in the handshake of two workers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Final

from baton.protos.errors import ConfigError, LayoutMismatchError

ITEM_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayout:
    """The shape of one block: `[num_layers, 2, kv_heads, block_size, head_dim]`, contiguous.

    A pool is `[num_blocks, *block_shape]`; index 0 of the second axis of a block is K, index 1 is
    V. `dtype` is torch's name without the prefix, such as "bfloat16". Raises ConfigError for
    values that describe no pool.
    """

    num_layers: int
    kv_heads: int
    block_size: int
    head_dim: int
    dtype: str

    def __post_init__(self) -> None:
        for name in ("num_layers", "kv_heads", "block_size", "head_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(
                    f"{name} is {value!r}, but must be a whole number from 1 on", param=name
                )
        if self.dtype not in ITEM_BYTES:
            raise ConfigError(
                f"dtype is {self.dtype!r}, but a KV pool can be one of {', '.join(ITEM_BYTES)}",
                param="dtype",
            )

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """`(num_layers, 2, kv_heads, block_size, head_dim)`."""
        return (self.num_layers, 2, self.kv_heads, self.block_size, self.head_dim)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block with all its layers, K and V."""
        numel = 2 * self.num_layers * self.kv_heads * self.block_size * self.head_dim
        return numel * ITEM_BYTES[self.dtype]

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens occupy, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> KVLayout:
        """Reads what another worker's `to_json` wrote; LayoutMismatchError otherwise."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise LayoutMismatchError(f"the peer's KV layout is not JSON: {error}") from error
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise LayoutMismatchError(
                f"the peer's KV layout {text!r} must have exactly the fields"
                f" {', '.join(sorted(names))}"
            )
        try:
            return cls(**values)
        except ConfigError as error:
            raise LayoutMismatchError(f"the peer's KV layout: {error.message}") from error

    def check_compatible(self, other: KVLayout) -> None:
        """Raises LayoutMismatchError, naming what differs, unless blocks can be copied."""
        differences = [
            f"{field.name} is {getattr(self, field.name)} here, {getattr(other, field.name)} there"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]
        if differences:
            raise LayoutMismatchError(
                "KV blocks cannot be copied between these workers: " + "; ".join(differences)
            )
