"""A child for NativeProcess that does as it is told."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection

if __name__ == "__main__":
    link = Connection(int(sys.argv[1]))
    if sys.argv[2] == "broken":
        os._exit(3)
    link.send(("ready", ""))
    while True:
        match link.recv():
            case "hang":
                time.sleep(600)
            case "crash":
                os._exit(139)
            case "refuse":
                link.send(("error", "no"))
            case said:
                link.send(("ok", said))
