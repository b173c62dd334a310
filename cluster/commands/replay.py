"""`baton replay`: a decision log, decided again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from baton.protos.errors import ConfigError, UnavailableError
from baton.router.config import POLICY_NAMES
from baton.router.record import inputs_from_json, where


@dataclass(slots=True)
class Replay:
    """What came of a log. `changes` holds the decisions that differ, as far as they are shown."""

    policy: str | None
    num_decisions: int = 0
    num_same: int = 0
    num_local_before: int = 0
    num_local: int = 0
    ttft_s_before: float = 0.0
    ttft_s: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    changes: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        count = max(self.num_decisions, 1)
        return {
            "policy": self.policy,
            "num_decisions": self.num_decisions,
            "num_same": self.num_same,
            "local_share_before": self.num_local_before / count,
            "local_share": self.num_local / count,
            "predicted_ttft_s_before": self.ttft_s_before / count,
            "predicted_ttft_s": self.ttft_s / count,
            "reasons": dict(self.reasons.most_common()),
            "changes": self.changes,
        }


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option(
    "--policy",
    type=click.Choice(POLICY_NAMES),
    help="What another policy would have decided. Default: the policy of each decision.",
)
@click.option("--show", type=click.IntRange(0), default=10, help="Changed decisions to list.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(log: Path, policy: str | None, show: int, as_json: bool) -> None:
    """Decide every decision of LOG (`fleet.decision_log`) again.

    Without --policy each must come out as it was, to the last bit, and the command fails where one
    does not. With --policy it shows what that policy would have done in each situation; what
    followed from other decisions is not replayed: `baton simulate` does that.
    """
    found = replay(log, policy, show)
    if as_json:
        click.echo(json.dumps(found.document()))
    else:
        click.echo(_text(found))
    if policy is None and found.num_same < found.num_decisions:
        raise ConfigError(
            f"{found.num_decisions - found.num_same} of {found.num_decisions} decisions came out "
            "differently: the log is of another version of Baton"
        )


def replay(log: Path, policy: str | None, show: int) -> Replay:
    """Decides again. Raises ConfigError that names the line of what is not a decision log."""
    found = Replay(policy)
    for number, line in _lines(log):
        if line.get("kind") != "plan":
            continue
        try:
            inputs = inputs_from_json(line)
            before, after = line["chosen"], where(inputs.decide(policy))
        except ConfigError as error:
            raise ConfigError(f"{log}, line {number}: {error.message}") from None
        except UnavailableError as error:
            before, after = line["chosen"], {"reason": error.message}
        found.num_decisions += 1
        found.reasons[after["reason"]] += 1
        found.num_local_before += not before["prefill"]
        found.num_local += not after.get("prefill", ["none"])
        found.ttft_s_before += before["ttft_s"]
        found.ttft_s += after.get("ttft_s", 0.0)
        if before == after:
            found.num_same += 1
        elif len(found.changes) < show:
            request_id = inputs.request.request_id
            found.changes.append({"request_id": request_id, "before": before, "after": after})
    return found


def _lines(log: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with log.open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise ConfigError(f"{log}, line {number} is not an object")
                yield number, line
    except (OSError, ValueError) as error:
        raise ConfigError(f"{log} is not a decision log: {error}") from None


def _text(found: Replay) -> str:
    document = found.document()
    lines = [
        f"{found.num_same} of {found.num_decisions} decisions are the same",
        f"computed locally: {document['local_share_before']:.1%}, "
        f"then {document['local_share']:.1%}",
    ]
    lines += [f"  {count:6d}  {reason}" for reason, count in found.reasons.most_common()]
    for change in found.changes:
        lines.append(f"{change['request_id']}: {change['before']} -> {change['after']}")
    return "\n".join(lines)
