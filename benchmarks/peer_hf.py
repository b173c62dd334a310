"""Baton's engine beside transformers' continuous batching: same model, CPU and requests.

    python benchmarks/peer_hf.py [--requests 64] [--rounds 3] [--threads 1]

Each side runs in a process of its own; rounds alternate, so that a noisy machine hits both. Greedy
decoding, end-of-sequence ignored: the work is the same to the token, and the answers are compared.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "baton-tiny"
RESULTS = ROOT / "benchmarks" / "results" / "peer_hf.json"

Requests = list[list[int]]


def make_requests(count: int, seed: int) -> Requests:
    """Prompts of 16 to 256 tokens."""
    rng = random.Random(seed)
    return [[rng.randrange(20, 1000) for _ in range(rng.randrange(16, 257))] for _ in range(count)]


def run_baton(requests: Requests, max_tokens: int) -> tuple[float, list[list[int]]]:
    from baton.engine.config import EngineConfig
    from baton.engine.engine import Engine
    from baton.protos.types import GenerateRequest, SamplingParams

    config = EngineConfig(model_dir=str(MODEL), max_running=64, max_step_tokens=512)
    engine = Engine(config)
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    engine.add(GenerateRequest(request_id="warm", prompt_token_ids=[5] * 8, sampling=sampling))
    while engine.has_work():
        engine.step()
    answers: dict[str, list[int]] = {str(i): [] for i in range(len(requests))}
    start = time.perf_counter()
    for i, prompt in enumerate(requests):
        engine.add(GenerateRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling))
    while engine.has_work():
        for output in engine.step().outputs:
            answers[output.request_id].extend(output.token_ids)
    seconds = time.perf_counter() - start
    engine.close()
    return seconds, list(answers.values())


def run_transformers(requests: Requests, max_tokens: int) -> tuple[float, list[list[int]]]:
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(
        MODEL, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.eval()
    generation = GenerationConfig(
        max_new_tokens=max_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    batching = ContinuousBatchingConfig(
        page_size=16, num_blocks=4096, max_batch_tokens=512, max_requests_per_batch=64
    )
    with model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=batching
    ) as manager:
        manager.add_request([5] * 8, request_id="warm")
        while (output := manager.get_result(timeout=60)) is None or not output.is_finished():
            pass
        names = [str(i) for i in range(len(requests))]
        found: dict[str, list[int]] = {}
        start = time.perf_counter()
        for name, prompt in zip(names, requests, strict=True):
            manager.add_request(prompt, request_id=name)
        while len(found) < len(requests):
            output = manager.get_result(timeout=60)
            if output is None or output.error:
                raise SystemExit(f"no answer from transformers: {output and output.error}")
            if output.is_finished():
                found[output.request_id] = list(output.generated_tokens)
        seconds = time.perf_counter() - start
    return seconds, [found[name] for name in names]


SIDES = {"baton": run_baton, "transformers": run_transformers}


def run_side(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    requests = make_requests(args.requests, args.seed)
    seconds, answers = SIDES[args.side](requests, args.max_tokens)
    print(json.dumps({"seconds": seconds, "answers": answers}))


def measure(side: str, args: argparse.Namespace, seed: int) -> dict[str, object]:
    command = [sys.executable, __file__, "--side", side, "--seed", str(seed)]
    for name in ("requests", "max_tokens", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=SIDES)
    args = parser.parse_args()
    if args.side:
        run_side(args)
        return
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    equal = 0
    for round_ in range(args.rounds):
        outcome = {side: measure(side, args, args.seed + round_) for side in SIDES}
        for side in SIDES:
            seconds[side].append(float(str(outcome[side]["seconds"])))
        equal += outcome["baton"]["answers"] == outcome["transformers"]["answers"]
        print({side: round(seconds[side][-1], 3) for side in SIDES}, "equal rounds:", equal)
    report(args, seconds, equal)


def report(args: argparse.Namespace, seconds: dict[str, list[float]], equal: int) -> None:
    from benchmarks.results_file import write_results

    tokens = args.requests * args.max_tokens
    rates = {side: [tokens / s for s in values] for side, values in seconds.items()}
    middle = {side: statistics.median(values) for side, values in rates.items()}
    row = {
        "measure": "output tokens/s, all requests at once",
        "ours": middle["baton"],
        "peer": middle["transformers"],
        "ratio": middle["baton"] / middle["transformers"],
        "unit": "tokens/s",
        "rounds": rates,
        "rounds_with_equal_tokens": equal,
    }
    write_results(RESULTS, [row], vars(args))
    print(f"baton {middle['baton']:.0f} tokens/s, transformers {middle['transformers']:.0f}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
