"""`baton explain`: why a request went where it went, and how it fared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from baton.cluster.client import Endpoint, get_json
from baton.cluster.options import endpoint_options

_PARTS = ("ttft", "slo", "queue", "interference", "decode", "room", "move", "extra", "cost")


@click.command()
@click.argument("request_id")
@endpoint_options
@click.option("--json", "as_json", is_flag=True, help="Print the document as the gateway has it.")
def command(request_id: str, endpoint: Endpoint, as_json: bool) -> None:
    """Show the decisions for REQUEST_ID: the options that were priced, the reason, and what the
    request really took.

    The id is that of the answer's x-request-id header. The gateway at --url must be the one that
    served it, and remembers the last `fleet.explained_requests`. Prices are milliseconds; what each
    means is in docs/router.md.
    """
    document = get_json(endpoint, f"/debug/plans/{quote(request_id, safe='')}")
    if as_json:
        click.echo(json.dumps(document))
        return
    for plan in document["plans"]:
        click.echo(text(plan))


def text(plan: Mapping[str, Any]) -> str:
    """One decision, for people."""
    prefill = plan["prefill"][0] if plan["prefill"] else "local"
    adapter = f" adapter={plan['adapter']}" if plan.get("adapter") else ""
    pull = f" pull_from={plan['pull_from']}" if plan.get("pull_from") else ""
    lines = [
        f"{plan['request_id']}: decode={plan['decode']} prefill={prefill} "
        f"reason={plan['reason']} policy={plan['policy']} cached_tokens={plan['num_cached_tokens']}"
        f"{adapter}{pull}"
    ]
    lines += [_option(option) for option in plan["candidates"]]
    lines.append(f"  predicted: ttft={1e3 * plan['ttft_s']:.1f}ms")
    lines.append(f"  realised:  {_outcome(plan['outcome'])}")
    return "\n".join(lines)


def _option(option: Mapping[str, Any]) -> str:
    prices = " ".join(f"{name}={1e3 * option[name + '_s']:.1f}" for name in _PARTS)
    return f"  {option['decode']} prefill={option['prefill'] or 'local'}: {prices}"


def _outcome(outcome: Mapping[str, Any] | None) -> str:
    if outcome is None:
        return "still running"
    if "went_on" in outcome:
        return f"failed there, went on at {outcome['went_on']}"
    if not outcome["finished"]:
        return f"ended early, after {outcome['num_tokens']} tokens"
    times = " ".join(
        f"{name}={1e3 * outcome[name + '_s']:.1f}ms"
        for name in ("ttft", "queue", "prefill", "transfer", "e2e")
    )
    where = outcome["prefilled_by"] or "local"
    fallback = f" fallback={outcome['fallback_reason']}" if outcome["fallback_reason"] else ""
    pulled = (
        f" pulled_tokens={outcome['num_pulled_tokens']}" if outcome["num_pulled_tokens"] else ""
    )
    return f"{times} prefilled_by={where} tokens={outcome['num_tokens']}{pulled}{fallback}"
