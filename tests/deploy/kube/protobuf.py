"""Objects as kubectl's typed commands send them: Kubernetes' protobuf, of the one kind that the
pages make with a command. The field numbers are those of Kubernetes' generated.proto files.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from typing import Any

MAGIC = b"k8s\0"
_RAW, _METADATA, _DATA, _TYPE, _NAME, _NAMESPACE = 2, 1, 2, 3, 1, 3


def secret(body: bytes) -> dict[str, Any]:
    """A Secret as JSON has it. Raises ValueError for what is no object in protobuf."""
    if not body.startswith(MAGIC):
        raise ValueError(f"not Kubernetes' protobuf: {body[:20]!r}")
    fields = _fields(_fields(body[len(MAGIC) :])[_RAW][0])
    meta = _fields(fields[_METADATA][0])
    pairs = [_fields(entry) for entry in fields[_DATA]]
    named = {"name": meta[_NAME][0].decode()}
    named |= {"namespace": meta[_NAMESPACE][0].decode()} if meta[_NAMESPACE] else {}
    return {
        "metadata": named,
        "type": fields[_TYPE][0].decode(),
        "data": {pair[1][0].decode(): base64.b64encode(pair[2][0]).decode() for pair in pairs},
    }


def _fields(message: bytes) -> dict[int, list[bytes]]:
    """The fields that have a length, by number; Secrets have no others that count."""
    found: dict[int, list[bytes]] = defaultdict(list)
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at)
        if tag & 7 == 2:
            found[tag >> 3].append(message[at : at + value])
            at += value
        elif tag & 7:
            raise ValueError(f"a field of kind {tag & 7}")
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
