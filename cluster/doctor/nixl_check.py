"""In a process of its own: two NIXL connectors, and a block of KV that goes from one to the other.

`python -m baton.cluster.doctor.nixl_check DEVICE`, with torch's name of a device.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import queue
import sys

import torch

from baton.cluster.doctor.finding import Finding, ok, problem
from baton.kvtransfer.connector import Connector, Notice, PeerKey
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.nixl import NixlConnector
from baton.protos.errors import BatonError, TransferError

WAIT_S = 30.0
FIX = (
    "install nixl-cu13 (`pip install 'baton-serve[worker]'`); if it is there, look at UCX_TLS and "
    "UCX_NET_DEVICES, which must name transports and cards of this machine (`ucx_info -d`)."
)


def check_loopback(device: str) -> Finding:
    """Pushes one block between two pools on `device`, and compares what has arrived."""
    name = f"NIXL on {device}"
    layout = KVLayout(num_layers=2, kv_heads=2, block_size=16, head_dim=64, dtype="float32")
    opened: list[Connector] = []
    try:
        source = torch.rand((2, *layout.block_shape), device=device)
        target = torch.zeros((2, *layout.block_shape), device=device)
        notices: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        for pool, side in ((source, "sender"), (target, "receiver")):
            key = PeerKey(f"doctor-{side}-{os.getpid()}", "1")
            opened.append(
                NixlConnector(pool, layout, key, on_notice=lambda _, notice: notices.put(notice))
            )
        _push(opened[0], opened[1], notices)
        if not torch.equal(source[0], target[1]):
            return problem(name, "A block of KV arrived with other values than were sent.", FIX)
    except (BatonError, RuntimeError, queue.Empty) as error:
        said = str(error) or f"nothing arrived within {WAIT_S:g} seconds"
        return problem(name, f"A block of KV could not be sent: {said.rstrip('.')}.", FIX)
    finally:
        for connector in reversed(opened):
            connector.close()
    return ok(name, "A block of KV went from one agent to another and arrived unchanged.")


def _push(sender: Connector, receiver: Connector, notices: queue.SimpleQueue[Notice]) -> None:
    done: queue.SimpleQueue[TransferError | None] = queue.SimpleQueue()
    receiver.expect(1)
    info = receiver.local_info()
    sender.connect(info)
    receiver.connect(sender.local_info())
    sender.push(info.key, [0], [1], Notice("doctor", 1, 0, 1), done.put)
    error = done.get(timeout=WAIT_S)
    if error is not None:
        raise error
    notices.get(timeout=WAIT_S)


def check_backends() -> Finding:
    """The backends that the installed NIXL has."""
    for package in ("nixl_cu13", "nixl_cu12"):
        try:
            api = importlib.import_module(f"{package}._api")
        except ModuleNotFoundError:
            continue
        agent = api.nixl_agent("doctor", api.nixl_agent_config(backends=[]))
        names = sorted(agent.get_plugin_list())
        if "UCX" in names:
            return ok("NIXL", f"{package} has the backends {', '.join(names)}.")
        return problem("NIXL", f"{package} has no backend UCX, only {', '.join(names)}.", FIX)
    return problem("NIXL", "It is not installed, and workers hand KV over with it.", FIX)


def main(device: str) -> None:
    """Prints the findings as JSON."""
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    torch.set_num_threads(1)
    found = [check_backends()]
    if found[0].state == "ok":
        found.append(check_loopback(device))
    print(json.dumps([dataclasses.asdict(finding) for finding in found]))


if __name__ == "__main__":
    main(sys.argv[1])
