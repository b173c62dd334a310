"""An LMCache server with Baton's module in it: `python -m baton.kvtransfer.lmcache.process`.

Takes the options of `lmcache server` that are about the server itself. It prints one line when it
takes requests, and ends when its standard input does: with the process that started it.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from typing import Any, Final

READY: Final = "ready"
QUIET: Final = {
    "LMCACHE_TRACK_USAGE": "false",
    "DO_NOT_TRACK": "1",
    "LMCACHE_DISABLE_BANNER": "1",
    "LMCACHE_LOG_LEVEL": "WARNING",
}
MODULE: Final = '{"module_path": "baton.kvtransfer.lmcache.module"}'


def main(arguments: list[str]) -> None:
    """Runs until standard input ends."""
    # Before the first import: LMCache reports its use to its makers otherwise.
    os.environ.update(QUIET)
    warnings.simplefilter("ignore", FutureWarning)
    server, engine = _start(arguments)
    print(READY, flush=True)
    sys.stdin.buffer.read()
    server.close()
    engine.close()


def _start(arguments: list[str]) -> Any:
    import torch
    from lmcache.v1.distributed import config as storage
    from lmcache.v1.mp_observability.config import ObservabilityConfig
    from lmcache.v1.multiprocess import config as multiprocess
    from lmcache.v1.multiprocess.server import run_cache_server

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    multiprocess.add_mp_server_args(parser)
    storage.add_storage_manager_args(parser)
    parsed = parser.parse_args([*arguments, "--server-module", MODULE])
    return run_cache_server(
        multiprocess.parse_args_to_mp_server_config(parsed),
        storage.parse_args_to_config(parsed),
        ObservabilityConfig(enabled=False),
        return_engine=True,
        start_prometheus_http_server=False,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
