"""The process that compiles grammars with xgrammar: asked over a socket, one at a time."""

from __future__ import annotations

import json
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

# A grammar that needs more fails to compile instead of taking the machine's memory.
MAX_BYTES = 6 << 30
MAX_SECONDS = 60


def main() -> None:
    """Arguments: the socket's descriptor, tokenizer.json, vocabulary size, eos ids as JSON."""
    import xgrammar

    from baton.engine.grammar.xgrammar_backend import compile_text, tokenizer_info
    from baton.protos.errors import GrammarError

    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    link = Connection(int(sys.argv[1]))
    path, vocab_size, eos = Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
    compilers = {
        tags: xgrammar.GrammarCompiler(
            tokenizer_info(path, vocab_size, eos, tags), max_threads=2, cache_enabled=False
        )
        for tags in (False, True)
    }
    link.send(("ready", ""))
    while True:
        try:
            kind, source, whitespace = link.recv()
        except EOFError:
            return
        # An orphan ends itself: the alarm's default is to kill, native code or not.
        signal.alarm(MAX_SECONDS)
        try:
            link.send(("ok", compile_text(compilers, kind, source, whitespace)))
        except GrammarError as error:
            link.send(("error", error.message))
        except MemoryError:
            link.send(("error", "it needs too much memory to compile"))
        signal.alarm(0)


if __name__ == "__main__":
    main()
