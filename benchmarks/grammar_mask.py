"""What a grammar costs a token: filling and applying masks, beside xgrammar's own, and the ITL.

    python -m benchmarks.grammar_mask [--device cpu] [--model models/baton-tiny] [--rows 1 16 64]
    python -m benchmarks.grammar_mask --device cuda --shape benchmarks/models/llama8b --output FILE

Fill: the masks of a batch at places all over a document, by the engine's filler for each backend
and by xgrammar's direct call, one row after the other. Apply: Baton's kernel and xgrammar's on the
same logits. ITL: seconds per token of a full batch with and without a schema, in turns. Jump:
answers to a form whose keys leave no choice, with forced tokens taken at once, and one by one (so
where log-probabilities are asked for, which cost next to nothing at this size). With a shape the
model is one of its layers and random weights, and its tokens are the model's and as many random
words as the shape's vocabulary wants.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer

from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.engine.grammar.backend import CompiledGrammar
from baton.engine.grammar.choose import compile_grammar
from baton.engine.grammar.vocabulary import Vocabulary
from baton.engine.model_info import read_model_spec
from baton.kernels.token_mask import token_mask
from baton.protos.constraints import Grammar, GrammarBackend, GrammarKind
from baton.protos.types import GenerateRequest, SamplingParams
from benchmarks.results_file import percentiles, write_results

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results" / "grammar_mask.json"
PERSON: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "email": {"type": "string"},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            "required": ["street", "city"],
        },
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "email", "address", "tags"],
}
DOCUMENT: Final = json.dumps(
    {
        "name": "Ada Lovelace",
        "age": 36,
        "email": "ada@example.org",
        "address": {"street": "12 St James's Square", "city": "London"},
        "tags": ["mathematics", "engines", "poetry"],
    }
)


FORM: Final = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "favourite_colour": {"enum": ["red", "green", "blue"]},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 8},
                "city": {"type": "string", "maxLength": 8},
            },
            "required": ["street", "city"],
            "additionalProperties": False,
        },
    },
    "required": ["first_name", "age", "favourite_colour", "address"],
    "additionalProperties": False,
}


def widened(model: Path, shape: Path, folder: Path) -> Path:
    """The shape's config and the model's tokenizer in a folder, their vocabularies of one size."""
    config = json.loads((shape / "config.json").read_text())
    own = json.loads((model / "config.json").read_text())
    config |= {key: own[key] for key in ("bos_token_id", "eos_token_id") if key in own}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    taken = {*vocab.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    free = (i for i in range(config["vocab_size"]) if i not in taken)
    rng = random.Random(0)
    for token_id in free:
        word = ""
        while not word or word in vocab:
            letters = rng.choices(string.ascii_lowercase, k=rng.randrange(2, 11))
            word = rng.choice(("", "\u0120")) + "".join(letters)
        vocab[word] = token_id
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def grammar(backend: GrammarBackend) -> Grammar:
    source = json.dumps(PERSON)
    return Grammar(kind=GrammarKind.JSON_SCHEMA, source=source, backend=backend)


def timed(call: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Seconds of each call, after three to warm up."""
    samples = []
    for i in range(repeats + 3):
        started_s = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 3:
            samples.append(time.perf_counter() - started_s)
    return samples


def natives_along(compiled: CompiledGrammar, tokens: list[int], rows: int) -> list[Any]:
    """Native matchers at `rows` places of the document."""
    rng = random.Random(0)
    natives = []
    for _ in range(rows):
        matcher = compiled.matcher()
        for token in tokens[: rng.randrange(len(tokens))]:
            assert matcher.accept(token)
        natives.append(matcher.native)
    return natives


def _fill_one_by_one(natives: list[Any], bitmask: Any) -> None:
    for index, matcher in enumerate(natives):
        matcher.fill_next_token_bitmask(bitmask, index)


def fill_rows(model: Path, batch_sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    spec = read_model_spec(str(model))
    vocabulary = Vocabulary(str(model), spec.vocab_size, spec.eos_token_ids)
    tokens = Tokenizer.from_file(str(model / "tokenizer.json")).encode(DOCUMENT).ids
    cpu, results = torch.device("cpu"), []
    for backend in (GrammarBackend.GUIDANCE, GrammarBackend.XGRAMMAR):
        started_s = time.perf_counter()
        compiled = compile_grammar(grammar(backend), vocabulary, limit_s=60.0)
        compile_s = time.perf_counter() - started_s
        for rows in batch_sizes:
            natives = natives_along(compiled, tokens, rows)
            bitmask = np.zeros((rows, -(-spec.vocab_size // 32)), dtype=np.int32)
            every = range(rows)
            ways = {f"baton {backend}": partial(compiled.filler.fill, natives, bitmask, every)}
            if backend is GrammarBackend.XGRAMMAR:
                ways["xgrammar direct"] = partial(_fill_one_by_one, natives, bitmask)
            for name, way in ways.items():
                samples = [s / rows for s in timed(way, repeats, cpu)]
                row = {"what": "fill", "by": name, "rows": rows, "vocab": spec.vocab_size}
                results.append(row | {"s_per_mask": percentiles(samples)})
        results.append({"what": "first compile", "by": str(backend), "seconds": compile_s})
    vocabulary.close()
    return results


def apply_rows(
    vocab: int, batch_sizes: list[int], repeats: int, device: torch.device
) -> list[dict[str, Any]]:
    import xgrammar

    results = []
    for rows in batch_sizes:
        logits = torch.randn(rows, vocab, device=device)
        words = torch.randint(-(2**31), 2**31 - 1, (rows, -(-vocab // 32)), dtype=torch.int32)
        bitmask, index = words.to(device), torch.arange(rows, device=device)
        for name, call in (
            ("baton", partial(token_mask, logits, bitmask, index)),
            ("xgrammar", partial(xgrammar.apply_token_bitmask_inplace, logits, bitmask)),
        ):
            samples = [s / rows for s in timed(call, repeats, device)]
            row = {"what": "apply", "by": name, "rows": rows, "vocab": vocab}
            results.append(row | {"s_per_mask": percentiles(samples)})
    return results


def itl_rows(engine: Engine, rows: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Steps of a full batch, constrained and not in turns; greedy, ends ignored."""
    found: dict[str, list[float]] = {"free": [], "constrained": []}
    for turn in range(2 * rounds):
        name = "constrained" if turn % 2 else "free"
        wanted = grammar(GrammarBackend.AUTO) if turn % 2 else None
        for i in range(rows):
            engine.add(
                GenerateRequest(
                    request_id=f"{turn}-{i}",
                    prompt_token_ids=[20 + (i + j) % 400 for j in range(16)],
                    sampling=SamplingParams(
                        temperature=1.0, seed=i, max_tokens=steps + 8, ignore_eos=True
                    ),
                    grammar=wanted,
                )
            )
        while engine.has_work() or engine.num_compiling:
            if not engine.has_work():
                time.sleep(0.001)
                continue
            output = engine.step()
            if output.num_decode_tokens == rows and not output.num_prefill_tokens:
                num_tokens = sum(len(said.token_ids) for said in output.outputs)
                found[name].append(output.duration_s * rows / num_tokens)
        print(name, len(found[name]), flush=True)
    masks = engine.statistics().masks
    middle = {name: percentiles(samples) for name, samples in found.items()}
    overhead = middle["constrained"]["p50"] / middle["free"]["p50"] - 1
    return [
        {
            "what": "ITL",
            "rows": rows,
            "free_s": middle["free"],
            "constrained_s": middle["constrained"],
            "overhead": round(overhead, 4),
            "fill_s_per_mask": masks.fill_s_per_mask,
        }
    ]


def jump_rows(engine: Engine, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Whole answers of a batch, by how forced tokens come."""
    results: list[dict[str, Any]] = []
    for whitespace in (True, False):
        samples: dict[str, list[float]] = {"jumped": [], "one by one": []}
        counts: dict[str, dict[str, int]] = {}
        # The first turn of each is to warm up.
        for turn in range(2 * rounds + 2):
            name = "one by one" if turn % 2 else "jumped"
            seconds, counts[name] = _fill_forms(engine, rows, whitespace, reported=turn % 2 == 1)
            samples[name] += [seconds] if turn > 1 else []
        for name, seconds_of in samples.items():
            row = {"what": "jump", "by": name, "rows": rows, "whitespace": whitespace}
            results.append(row | counts[name] | {"batch_s": percentiles(seconds_of)})
    return results


def _fill_forms(
    engine: Engine, rows: int, whitespace: bool, *, reported: bool
) -> tuple[float, dict[str, int]]:
    """Seconds for a form in each row, and what that took."""
    source = json.dumps(FORM)
    form = Grammar(kind=GrammarKind.JSON_SCHEMA, source=source, whitespace=whitespace)
    before = engine.statistics()
    for i in range(rows):
        engine.add(
            GenerateRequest(
                request_id=f"form-{i}",
                prompt_token_ids=[20 + (i + j) % 400 for j in range(16)],
                sampling=SamplingParams(seed=i, max_tokens=300, logprobs=0 if reported else None),
                grammar=form,
            )
        )
    started_s, num_tokens = time.perf_counter(), 0
    while engine.has_work() or engine.num_compiling:
        num_tokens += sum(len(said.token_ids) for said in engine.step().outputs)
    seconds, after = time.perf_counter() - started_s, engine.statistics()
    return seconds, {
        "tokens": num_tokens,
        "jumped_tokens": after.num_jumped_tokens - before.num_jumped_tokens,
        "steps": after.num_steps - before.num_steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "baton-tiny")
    parser.add_argument("--shape", type=Path, help="A folder with the config.json of a larger one.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--vocab", type=int, default=128256, help="Of the apply measurement.")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="Of torch, on a CPU.")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if arguments.shape is not None:
            model = widened(model, arguments.shape, Path(folder))
        rows = measured(arguments, model)
    for row in rows:
        print(json.dumps(row))
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "output"}
    settings["model"] = arguments.model.name
    write_results(arguments.output, rows, settings)


def measured(arguments: argparse.Namespace, model: Path) -> list[dict[str, Any]]:
    device = torch.device(arguments.device)
    rows = fill_rows(model, arguments.rows, arguments.repeats)
    rows += apply_rows(arguments.vocab, arguments.rows, arguments.repeats, device)
    largest = max(arguments.rows)
    engine = Engine(
        EngineConfig(
            model_dir=str(model),
            device=arguments.device,
            max_running=largest,
            num_blocks=largest * max(arguments.steps // 16 + 4, 12),
            random_weights=arguments.shape is not None,
        )
    )
    rows += itl_rows(engine, largest, arguments.rounds, arguments.steps)
    for size in arguments.rows:
        rows += jump_rows(engine, size, arguments.rounds)
    engine.close()
    return rows


if __name__ == "__main__":
    main()
