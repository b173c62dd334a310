"""What a KV pool looks like in memory, as it travels in the handshake of two workers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Final

from baton.protos.errors import ConfigError, LayoutMismatchError

ITEM_BYTES: Final = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float64": 8,
    "float8_e4m3fn": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayout:
    """The shape of one block: `[num_layers, planes, kv_heads, block_size, head_dim]`, contiguous.

    A pool is `[num_blocks, *block_shape]`. With 2 planes index 0 is K and index 1 is V; 1 plane
    holds the one latent of multi-head latent attention, which has one "head" that every
    tensor-parallel rank keeps whole. `dtype` is torch's name without the prefix, such as
    "bfloat16".

    A tensor-parallel rank's pool holds heads `[first_head, first_head + kv_heads)` of the model's
    `total_heads` (0 stands for `kv_heads`: all of them). `scales` are what stored values are to be
    multiplied with, one per plane of each layer in that order; empty means 1.

    Raises ConfigError for values that describe no pool.
    """

    num_layers: int
    kv_heads: int
    block_size: int
    head_dim: int
    dtype: str
    planes: int = 2
    first_head: int = 0
    total_heads: int = 0
    tp_rank: int = 0
    tp_size: int = 1
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_layers", "kv_heads", "block_size", "head_dim", "planes", "tp_size"):
            self._check_whole(name, 1)
        for name in ("first_head", "total_heads", "tp_rank"):
            self._check_whole(name, 0)
        if self.dtype not in ITEM_BYTES:
            raise ConfigError(
                f"dtype is {self.dtype!r}, but a KV pool can be one of {', '.join(ITEM_BYTES)}",
                param="dtype",
            )
        if self.planes > 2:
            raise ConfigError(f"planes is {self.planes}, but must be 1 or 2", param="planes")
        if self.tp_rank >= self.tp_size:
            raise ConfigError(
                f"tp_rank is {self.tp_rank}, but must be below tp_size, {self.tp_size}",
                param="tp_rank",
            )
        if self.first_head + self.kv_heads > self.num_model_heads:
            raise ConfigError(
                f"heads {self.first_head} to {self.first_head + self.kv_heads - 1} are outside the"
                f" model's {self.num_model_heads}",
                param="first_head",
            )
        if self.scales and len(self.scales) != self.num_layers * self.planes:
            raise ConfigError(
                f"scales has {len(self.scales)} values, but must have one per layer and plane,"
                f" {self.num_layers * self.planes}, or none",
                param="scales",
            )
        if any(not scale > 0 for scale in self.scales):
            raise ConfigError("scales must all be above 0", param="scales")

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(
                f"{name} is {value!r}, but must be a whole number from {least} on", param=name
            )

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """`(num_layers, planes, kv_heads, block_size, head_dim)`."""
        return (self.num_layers, self.planes, self.kv_heads, self.block_size, self.head_dim)

    @property
    def item_bytes(self) -> int:
        """Bytes of one stored value."""
        return ITEM_BYTES[self.dtype]

    @property
    def head_bytes(self) -> int:
        """Bytes of one head of one plane of one layer of a block: the finest contiguous run."""
        return self.block_size * self.head_dim * self.item_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one block with all its layers and planes."""
        return self.num_layers * self.planes * self.kv_heads * self.head_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token with all heads of the model, wherever those are."""
        return self.block_bytes // (self.block_size * self.kv_heads) * self.num_model_heads

    @property
    def num_model_heads(self) -> int:
        """KV heads of the whole model."""
        return self.total_heads or self.kv_heads

    @property
    def heads(self) -> range:
        """The model's heads that this pool holds."""
        return range(self.first_head, self.first_head + self.kv_heads)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens occupy, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def describe(self) -> str:
        """For people: what a pair that cannot be mapped is told about each side."""
        kind = "K and V" if self.planes == 2 else "a latent"
        heads = f"heads {self.first_head} to {self.first_head + self.kv_heads - 1}"
        return (
            f"{self.num_layers} layers of {kind}, {heads} of {self.num_model_heads} (rank"
            f" {self.tp_rank} of {self.tp_size}), head size {self.head_dim}, {self.dtype}, blocks"
            f" of {self.block_size} tokens"
        )

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
            values["scales"] = tuple(float(scale) for scale in values["scales"])
            return cls(**values)
        except (ConfigError, TypeError, ValueError) as error:
            raise LayoutMismatchError(f"the peer's KV layout: {error}") from error


def rank_layout(
    *, tp_rank: int, tp_size: int, total_heads: int, **others: int | str | tuple[float, ...]
) -> KVLayout:
    """The pool of one tensor-parallel rank of a model with `total_heads` KV heads.

    Heads are dealt in equal runs; with more ranks than heads several ranks hold the same head
    (grouped-query and multi-query attention, and the latent of multi-head latent attention).
    Raises ConfigError if neither number divides the other.
    """
    if total_heads % tp_size and tp_size % total_heads:
        raise ConfigError(
            f"tp_size is {tp_size}, but must divide the model's {total_heads} KV heads or be a"
            f" multiple of them",
            param="tp_size",
        )
    return KVLayout(
        tp_rank=tp_rank,
        tp_size=tp_size,
        total_heads=total_heads,
        kv_heads=max(total_heads // tp_size, 1),
        first_head=tp_rank * total_heads // tp_size,
        **others,  # type: ignore[arg-type]  # checked by KVLayout itself
    )
