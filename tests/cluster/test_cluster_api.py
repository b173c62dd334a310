from __future__ import annotations

import json
import math

from baton.cluster.commands.status import table
from baton.gateway.cluster_api import workers_document
from baton.protos.types import Member, Role, WorkerLoad
from baton.router.view import WorkerView


def view(name: str, role: Role, *, age_s: float = 0.1, draining: bool = False) -> WorkerView:
    member = Member(worker_id=name, incarnation="i", role=role, address="h:1", model="m")
    load = WorkerLoad(total_blocks=10, free_blocks=4, draining=draining)
    return WorkerView(
        member=member, load=load, age_s=age_s, in_flight_tokens=7, in_flight_requests=2
    )


def test_workers_are_ordered_and_have_a_state() -> None:
    document = workers_document(
        [
            view("p1", Role.PREFILL, draining=True),
            view("d2", Role.DECODE, age_s=60.0),
            view("d1", Role.DECODE),
            view("d3", Role.DECODE, age_s=math.inf),
        ]
    )
    assert [(w["worker_id"], w["state"]) for w in document] == [
        ("d1", "up"),
        ("d2", "silent"),
        ("d3", "silent"),
        ("p1", "draining"),
    ]
    assert document[2]["age_s"] is None
    assert document[0]["load"]["free_blocks"] == 4
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_status_table_reads_the_document() -> None:
    assert table(workers_document([view("d1", Role.DECODE)])).row_count == 1
    assert table([]).row_count == 0
