"""The process of one rank: `python -m baton.engine.parallel.process`, with a RankSpec on stdin."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading

from baton.engine.parallel.follower import follow
from baton.engine.parallel.links import RankSpec
from baton.protos.errors import BatonError


def main() -> int:
    """The exit status: 1 when the rank failed, which rank 0 has been told."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    # The parent's own pipe, not input from outside.
    spec: RankSpec = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        follow(spec)
    except (BatonError, OSError, RuntimeError) as error:
        logging.getLogger(__name__).error("rank %d ends: %s", spec.rank, error)
        return 1
    return 0


def _end_with_parent() -> None:
    """A rank that waits for its peers in a GPU kernel notices nothing else."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
