"""A safetensors file in memory: names to numpy arrays, bfloat16 included, without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from baton.protos.errors import AdapterError

Floats = npt.NDArray[np.float32]

_LENGTH: Final = struct.Struct("<Q")
# Of the format's own reader.
MAX_HEADER_BYTES: Final = 100 << 20
# bfloat16 has no numpy type: its bits are the upper half of a float32's.
DTYPES: Final[Mapping[str, npt.DTypeLike]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor; `raw` are its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: memoryview

    def floats(self) -> Floats:
        """[shape] in float32. Raises AdapterError at the first value that is not finite."""
        stored: npt.NDArray[Any] = np.frombuffer(self.raw, dtype=DTYPES[self.dtype])
        if self.dtype == "BF16":
            found: Floats = (stored.astype(np.uint32) << 16).view(np.float32)
        else:
            # What float32 cannot hold becomes infinite, and is refused below.
            with np.errstate(over="ignore"):
                found = stored.astype(np.float32)
        found = found.reshape(self.shape)
        finite = np.isfinite(found)
        if not finite.all():
            place = [int(i) for i in np.argwhere(~finite)[0]]
            raise AdapterError(
                f"tensor {self.name} holds {found[tuple(place)]} at {place}, but must be finite",
                param=self.name,
            )
        return found


def read_tensors(raw: memoryview, where: str) -> Mapping[str, StoredTensor]:
    """The tensors of a file's bytes. Raises AdapterError for a file that is damaged or another
    kind of file, and for a tensor that does not hold floats."""
    try:
        header, start = _header(raw)
        return {
            name: _tensor(name, said, raw[start:])
            for name, said in header.items()
            if name != "__metadata__"
        }
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        struct.error,
    ) as error:
        raise AdapterError(f"{where} is not a whole safetensors file: {error}") from error


def _header(raw: memoryview) -> tuple[dict[str, Any], int]:
    (length,) = _LENGTH.unpack(raw[: _LENGTH.size])
    end = _LENGTH.size + length
    if length > MAX_HEADER_BYTES or end > len(raw):
        raise ValueError(f"a header of {length} bytes in a file of {len(raw)}")
    header: dict[str, Any] = json.loads(bytes(raw[_LENGTH.size : end]))
    return header, end


def _tensor(name: str, said: Mapping[str, Any], data: memoryview) -> StoredTensor:
    dtype, shape = said["dtype"], tuple(said["shape"])
    start, end = said["data_offsets"]
    if dtype not in DTYPES:
        raise AdapterError(
            f"tensor {name} has dtype {dtype}, but must be one of {', '.join(DTYPES)}", param=name
        )
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"tensor {name} has the shape {shape}")
    num_bytes = int(np.prod(shape, dtype=object)) * np.dtype(DTYPES[dtype]).itemsize
    if not (0 <= start <= end <= len(data)) or end - start != num_bytes:
        raise ValueError(f"tensor {name} {shape} lies at [{start}, {end}) of {len(data)} bytes")
    return StoredTensor(name, dtype, shape, data[start:end])
