"""Measure a model folder on held-out prompts: greedy decoding, exact replies.

Needs `transformers`, which reads the folder as any server would.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from models.train.render import render
from models.train.samples import Sample, draw
from models.train.tasks import MAKERS
from transformers import AutoModelForCausalLM, AutoTokenizer

MODES = {"think": True, "direct": False}


class Score(NamedTuple):
    """How many replies were right."""

    num_right: int
    num_prompts: int
    misses: list[tuple[str, str, str]]


def final_reply(text: str) -> str:
    """Return what follows the thought, without the closing token."""
    return text.split("</think>")[-1].lstrip("\n").removesuffix("<|im_end|>")


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Yield slices of a list."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@torch.no_grad()
def generate(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Return the greedy continuations of some prompts, special tokens included."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    inputs = inputs.to(model.device)
    outputs = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    texts = tokenizer.batch_decode(outputs[:, inputs.input_ids.shape[1] :])
    return [text.replace("<|endoftext|>", "") for text in texts]


def held_out_samples(task: str, count: int, seed: int) -> list[Sample]:
    """Return held-out samples of one task, no two with the same prompt."""
    rng = random.Random(seed)
    seen: dict[str, Sample] = {}
    for _ in range(20 * count):
        sample = draw(MAKERS[task], rng, held_out=True)
        seen.setdefault(render(sample, thinking=True)[0], sample)
        if len(seen) == count:
            break
    return list(seen.values())


def score(model: Any, tokenizer: Any, samples: list[Sample], *, thinking: bool) -> Score:
    """Decode a reply to every sample and count the exact ones."""
    samples = sorted(samples, key=lambda s: len(render(s, thinking=thinking)[0]))
    misses = []
    for part in batches(samples, 50):
        pairs = [render(sample, thinking=thinking) for sample in part]
        longest = max(len(tokenizer(target).input_ids) for _, target in pairs)
        replies = generate(model, tokenizer, [prompt for prompt, _ in pairs], longest + 8)
        for sample, (prompt, _), reply in zip(part, pairs, replies, strict=True):
            if final_reply(reply) != sample.reply or not reply.endswith("<|im_end|>"):
                misses.append((prompt, sample.reply, reply))
    return Score(len(samples) - len(misses), len(samples), misses)


def main() -> None:
    """Score every task in both modes and print, or write, the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200, help="prompts per task and mode")
    parser.add_argument("--tasks", nargs="*", default=list(MAKERS))
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--show", type=int, default=0, help="misses to print per task")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    result: dict[str, dict[str, str]] = {}
    for task in args.tasks:
        start = time.monotonic()
        samples = held_out_samples(task, args.count, args.seed)
        scores = {
            mode: score(model, tokenizer, samples, thinking=flag) for mode, flag in MODES.items()
        }
        result[task] = {mode: f"{s.num_right}/{s.num_prompts}" for mode, s in scores.items()}
        print(f"{task:12} {result[task]} {time.monotonic() - start:.0f} s", flush=True)
        for mode, one in scores.items():
            for prompt, wanted, got in one.misses[: args.show]:
                print(f"  {mode}: {prompt[-200:]!r}\n    wanted {wanted!r}\n    got    {got!r}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
