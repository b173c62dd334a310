"""A rank other than 0: runs the steps that rank 0 sends, on its part of the model."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Final

import torch
from torch._C._distributed_c10d import TCPStore

from baton.engine.device import resolve_platform
from baton.engine.parallel.adapters import RankAdapters
from baton.engine.parallel.connectors import ConnectorServer
from baton.engine.parallel.group import TorchGroup
from baton.engine.parallel.links import CONNECT_TIMEOUT_S, RankLink, RankSpec, connect
from baton.engine.parallel.messages import StepReader, read_command
from baton.engine.parallel.shards import Shards
from baton.engine.parallel.tiers import RankTiers
from baton.engine.runner import Runner
from baton.protos.clock import SystemClock
from baton.protos.errors import BatonError

# What a rank reports, in this order, or FAILED at any time.
PRESENT: Final = "present"
READY: Final = "ready"
FAILED: Final = "failed"


def follow(spec: RankSpec) -> None:
    """Returns when rank 0 is done or gone. What it raises, rank 0 is told first."""
    link = connect(spec)
    with contextlib.ExitStack() as stack:
        stack.callback(link.close)
        try:
            _run(spec, link, stack)
        except BaseException as error:
            _tell(link, error)
            raise


def _run(spec: RankSpec, link: RankLink, stack: contextlib.ExitStack) -> None:
    config = spec.config
    torch.set_num_threads(spec.num_threads)
    platform = resolve_platform(config.device, config.dtype)
    link.tell({"state": PRESENT})
    shards = Shards(spec.rank, config.tensor_parallel_size)
    store = TCPStore(
        spec.host,
        spec.store_port,
        shards.size,
        is_master=False,
        timeout=timedelta(seconds=CONNECT_TIMEOUT_S),
    )
    group = TorchGroup(store, shards, platform.device, spec.here)
    runner = Runner(config, SystemClock(), group)
    stack.callback(runner.close)
    adapters = None if runner.adapters is None else RankAdapters(runner.adapters)
    tiers = RankTiers(config, runner.pool, runner.model.digest)
    stack.callback(tiers.close)
    connectors = ConnectorServer(link, runner.pool, adapters, tiers, spec.own_host)
    stack.callback(connectors.close)
    # Its end is what the connectors' thread waits for.
    stack.callback(link.end)
    connectors.start()
    reader = StepReader(runner)
    link.tell({"state": READY})
    while (message := link.receive_step()) is not None:
        command = read_command(message)
        if command is None:
            runner.launch(reader.read(message))
        elif adapters is not None:
            adapters.do(*command)


def _tell(link: RankLink, error: BaseException) -> None:
    code = error.code if isinstance(error, BatonError) else ""
    param = error.param or "" if isinstance(error, BatonError) else ""
    message = str(error) or type(error).__name__
    try:
        link.tell({"state": FAILED, "code": code, "param": param, "message": message})
    except OSError:
        # Rank 0 is gone: it has no use for the reason.
        return
