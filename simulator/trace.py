"""Reads request traces: Mooncake's JSON lines, Azure's CSV, descriptions of synthetic mixes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from baton.protos.errors import ConfigError
from baton.protos.hashing import HASH_BYTES
from baton.simulator.mixes import MIXES, mix_from_json
from baton.simulator.request import Trace, TraceRequest
from baton.simulator.synthetic import BLOCK_TOKENS, synthesize

SYNTHETIC = "synthetic:"
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_trace(source: str, *, seed: int = 0) -> Trace:
    """A trace file of any known format, or a built-in mix as `synthetic:NAME`.

    `seed` draws synthetic requests; recorded ones do not depend on it. Raises ConfigError that
    names the file, the line and what is expected there.
    """
    if source.startswith(SYNTHETIC):
        name = source.removeprefix(SYNTHETIC)
        if name not in MIXES:
            raise ConfigError(
                f"there is no synthetic mix {name!r}; there are {', '.join(MIXES)}", param="trace"
            )
        return synthesize(name, MIXES[name], seed)
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trace {source}: {error}", param="trace") from None
    head = text.lstrip()[:200]
    if head.startswith(_AZURE_COLUMNS[0]):
        requests = _azure(path, text)
    elif head.startswith("{") and '"timestamp"' in head.partition("\n")[0]:
        requests = _mooncake(path, text)
    elif head.startswith("{"):
        return synthesize(path.stem, mix_from_json(_json(text, str(path)), str(path)), seed)
    else:
        raise ConfigError(
            f"trace {source}: neither Mooncake's JSON lines (timestamp, input_length, "
            f"output_length, hash_ids), nor Azure's CSV ({', '.join(_AZURE_COLUMNS)}), nor the "
            "JSON object of a synthetic mix",
            param="trace",
        )
    return _in_order(path.stem, requests)


def scaled(trace: Trace, rate_scale: float) -> Trace:
    """The same requests, arriving `rate_scale` times as fast. Raises ConfigError unless > 0."""
    if not rate_scale > 0:
        raise ConfigError(
            f"rate scale is {rate_scale}, but must be more than 0", param="rate-scale"
        )
    if rate_scale == 1:
        return trace
    return replace(
        trace,
        requests=tuple(
            replace(request, arrival_s=request.arrival_s / rate_scale) for request in trace.requests
        ),
    )


@dataclass(frozen=True, slots=True)
class _Row:
    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    hash_ids: tuple[int, ...] = ()


def _mooncake(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        value = _json(line, where)
        hash_ids = value.get("hash_ids", [])
        if not isinstance(hash_ids, list) or not all(type(i) is int and i >= 0 for i in hash_ids):
            raise ConfigError(f"{where}: hash_ids must be a list of integers", param="trace")
        yield _Row(
            _number(value, "timestamp", where, 0) / 1000,
            int(_number(value, "input_length", where, 1)),
            # A request that failed while it was recorded still samples one token here.
            max(1, int(_number(value, "output_length", where, 0))),
            tuple(hash_ids),
        )


def _azure(path: Path, text: str) -> Iterator[_Row]:
    rows = csv.DictReader(text.splitlines())
    missing = [name for name in _AZURE_COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise ConfigError(f"{path} line 1: no column {missing[0]}", param="trace")
    for number, row in enumerate(rows, start=2):
        where = f"{path} line {number}"
        try:
            # Seven digits of a second: more than datetime reads.
            stamp, _, fraction = row["TIMESTAMP"].partition(".")
            arrival_s = datetime.fromisoformat(f"{stamp}+00:00").timestamp()
            digits = fraction.partition("+")[0]
            arrival_s += int(digits) / 10 ** len(digits) if digits else 0.0
            num_prompt = int(row["ContextTokens"])
            num_output = int(row["GeneratedTokens"])
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{where}: {error}", param="trace") from None
        if num_prompt < 1:
            raise ConfigError(f"{where}: ContextTokens is {num_prompt}, not 1 or more")
        yield _Row(arrival_s, num_prompt, max(1, num_output))


def _in_order(name: str, rows: Iterable[_Row]) -> Trace:
    ordered = sorted(rows, key=lambda row: row.arrival_s)
    if not ordered:
        raise ConfigError(f"trace {name} has no requests", param="trace")
    start_s = ordered[0].arrival_s
    hashes: dict[int, bytes] = {}
    requests = []
    for index, row in enumerate(ordered):
        full = row.hash_ids[: row.num_prompt_tokens // BLOCK_TOKENS]
        for hash_id in full:
            if hash_id not in hashes:
                hashes[hash_id] = hash_id.to_bytes(HASH_BYTES, "little")
        requests.append(
            TraceRequest(
                index,
                row.arrival_s - start_s,
                row.num_prompt_tokens,
                row.num_output_tokens,
                tuple(hashes[hash_id] for hash_id in full),
            )
        )
    return Trace(name, BLOCK_TOKENS, tuple(requests))


def _json(text: str, where: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}", param="trace") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be a JSON object", param="trace")
    return value


def _number(value: Mapping[str, Any], name: str, where: str, low: int) -> float:
    found = value.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float) or found < low:
        raise ConfigError(
            f"{where}: {name} is {found!r}, but must be a number of at least {low}", param="trace"
        )
    return found
