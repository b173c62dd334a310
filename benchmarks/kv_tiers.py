"""Time to the first token of a prompt whose KV lives in a tier below the pool, beside computing it.

    python -m benchmarks.kv_tiers [--model FOLDER] [--tokens 512,2048] [--repeats 9] [--output FILE]

A real engine on its thread. Each prompt is served once (it is computed), then driven out of every
place above the one that is measured by other prompts, and served again; its tokens must be those of
the first time. The pool holds little more than one prompt, host memory ("cpu") all, or little more
than one where the disk, or an LMCache server that is started here, is measured. "disk, cold" is
with the files driven out of the page cache.
Rows {model, tokens, measure, ms: {p20, p50, p80}, loaded_tokens, unit}; those of other cases stay
in the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import queue
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.kvtransfer.lmcache.config import LMCacheConfig
from baton.kvtransfer.lmcache.server import LMCacheServer
from baton.kvtransfer.tiers.config import TierConfig
from baton.protos.types import GenerateRequest, RequestOutput, SamplingParams, StepOutput
from benchmarks.results_file import merge_results, percentiles

BLOCK_SIZE: Final = 16
GIB: Final = 1 << 30
WAIT_S: Final = 600.0
TINY: Final = Path(__file__).resolve().parent.parent / "models" / "baton-tiny"


@dataclasses.dataclass(frozen=True, slots=True)
class First:
    """A first token, the time that it took, and the tokens before it that were not computed."""

    token_id: int
    seconds: float
    num_cached: int


class Serving:
    """One engine that serves one prompt at a time."""

    def __init__(self, config: EngineConfig) -> None:
        self.engine = Engine(config)
        self._outputs: queue.SimpleQueue[RequestOutput | BaseException] = queue.SimpleQueue()
        self._loop = EngineLoop(self.engine, self._on_step, self._outputs.put)
        self._loop.start()
        self._ids = itertools.count()

    def first_token(self, prompt: Sequence[int]) -> First:
        request = GenerateRequest(
            request_id=str(next(self._ids)),
            prompt_token_ids=prompt,
            sampling=SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True),
        )
        began_s = time.perf_counter()
        self._loop.call(lambda engine: engine.add(request))
        output = self._outputs.get(timeout=WAIT_S)
        if isinstance(output, BaseException):
            raise output
        seconds = time.perf_counter() - began_s
        return First(output.token_ids[0], seconds, output.num_cached_tokens)

    def settle(self) -> None:
        """Until what was served is written below."""
        num_stored = -1
        while (now := self._num_stored()) != num_stored:
            num_stored = now
            time.sleep(0.2)

    def close(self) -> None:
        self._loop.stop()
        self.engine.check_integrity()
        self.engine.close()

    def _num_stored(self) -> int:
        found = self._loop.call(lambda engine: engine.statistics().tiers).result(WAIT_S)
        if found is None:
            return 0
        return found.num_stored + sum(tier.num_stored for tier in found.lower)

    def _on_step(self, step: StepOutput) -> None:
        for output in step.outputs:
            self._outputs.put(output)


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """`measure`: where the KV is. `host_prompts`: how many prompts host memory holds."""

    measure: str
    host_prompts: float
    on_disk: bool = False
    cold: bool = False
    shared: bool = False

    @property
    def is_below(self) -> bool:
        """Whether it has to leave host memory, too."""
        return self.on_disk or self.shared


CASES: Final = (
    Case("cpu", 64.0),
    Case("disk", 1.7, on_disk=True),
    Case("disk, cold", 1.7, on_disk=True, cold=True),
    Case("lmcache", 1.7, shared=True),
)


def engine_config(args: argparse.Namespace, case: Case, num_tokens: int, path: str) -> EngineConfig:
    """A pool of little more than one prompt, and the tiers of the case."""
    num_blocks = num_tokens // BLOCK_SIZE
    probe = EngineConfig(
        model_dir=str(args.model),
        block_size=BLOCK_SIZE,
        num_blocks=int(1.3 * num_blocks) + 4,
        device=args.device,
        max_step_tokens=args.max_step_tokens,
        random_weights=args.random_weights,
    )
    prompt_gib = num_blocks * args.block_bytes / GIB
    tiers = TierConfig(
        cpu_gib=case.host_prompts * prompt_gib,
        disk_path=path if case.on_disk else "",
        disk_gib=200 * prompt_gib if case.on_disk else 0.0,
        lmcache=args.lmcache if case.shared else "",
    )
    return dataclasses.replace(probe, kv_tiers=tiers)


def measure(args: argparse.Namespace, case: Case, num_tokens: int) -> list[dict[str, Any]]:
    """Rows of one case: computed, and loaded."""
    draw = random.Random(num_tokens)
    with tempfile.TemporaryDirectory(dir=args.folder) as path:
        serving = Serving(engine_config(args, case, num_tokens, path))
        vocab = serving.engine.model.vocab_size

        def prompt() -> list[int]:
            return [draw.randrange(10, vocab - 10) for _ in range(num_tokens)]

        computed: list[First] = []
        loaded: list[First] = []
        for repeat in range(args.repeats + 1):
            wanted = prompt()
            one = serving.first_token(wanted)
            for _ in range(3 if case.is_below else 1):
                serving.settle()
                serving.first_token(prompt())
            serving.settle()
            if case.cold:
                forget_pages(Path(path))
            again = serving.first_token(wanted)
            if one.token_id != again.token_id:
                raise AssertionError(f"{case.measure}: token {again.token_id}, not {one.token_id}")
            # The first prompt of a process pays for what is made on first use.
            if repeat:
                computed.append(one)
                loaded.append(again)
        serving.close()
    return [
        row(args, num_tokens, f"computed (beside {case.measure})", computed),
        row(args, num_tokens, case.measure, loaded),
    ]


def row(
    args: argparse.Namespace, num_tokens: int, name: str, found: Sequence[First]
) -> dict[str, Any]:
    return {
        "model": args.model.name,
        "tokens": num_tokens,
        "measure": name,
        "ms": percentiles([1e3 * one.seconds for one in found]),
        "loaded_tokens": statistics.median(one.num_cached for one in found),
        "unit": "ms to first token",
    }


def forget_pages(folder: Path) -> None:
    """Drives the files out of the page cache."""
    for path in folder.glob("worker-*/??/*"):
        file = os.open(path, os.O_RDONLY)
        os.fdatasync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=TINY)
    parser.add_argument("--tokens", default="512,2048,7680")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-step-tokens", type=int, default=512)
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="where the disk is measured; default: that of tempfile")
    parser.add_argument("--cases", default=";".join(case.measure for case in CASES))
    parser.add_argument("--lmcache-gib", type=float, default=1.0)
    parser.add_argument("--output", default="benchmarks/results/kv_tiers.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.block_bytes = block_bytes(args)
    rows: list[dict[str, Any]] = []
    wanted = [case for case in CASES if case.measure in args.cases.split(";")]
    server = LMCacheServer(LMCacheConfig(memory_gib=args.lmcache_gib))
    server.start()
    args.lmcache = server.address
    for num_tokens in map(int, args.tokens.split(",")):
        for case in wanted:
            for found in measure(args, case, num_tokens):
                rows.append(found)
                print(found, flush=True)
    server.close()
    places = {"model", "folder", "output", "lmcache"}
    settings = {name: value for name, value in vars(args).items() if name not in places}
    merge_results(args.output, rows, settings, key=("model", "tokens", "measure"))


def block_bytes(args: argparse.Namespace) -> int:
    """Of the model's KV, as an engine has it."""
    engine = Engine(
        EngineConfig(
            model_dir=str(args.model),
            block_size=BLOCK_SIZE,
            num_blocks=4,
            device=args.device,
            random_weights=args.random_weights,
        )
    )
    found = engine.pool.layout.block_bytes
    engine.close()
    return found


if __name__ == "__main__":
    main()
