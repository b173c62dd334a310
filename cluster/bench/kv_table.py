"""Rows of `baton bench kv` as lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def line(row: Mapping[str, Any]) -> str:
    """One row: rates in GB/s, and how long the median push takes."""
    same = f"  blocks {row['raw_blocks']:6.2f}" if "raw_blocks" in row else ""
    return (
        f"{row['connector']:5} {row['measure']:<78} ours {row['ours']:6.2f}  raw {row['raw']:6.2f}"
        f"{same}  memcpy {row['memcpy']:6.2f} GB/s  ratio {row['ratio']:.2f}"
        f"  {row['latency_us']['p50']:8.0f} us"
    )
