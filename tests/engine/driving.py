"""Drives a Runner without a scheduler: slots and blocks in order, prompts in chunks as asked."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from baton.engine.batch import RunResult, ScheduledRow
from baton.engine.config import EngineConfig
from baton.engine.request import Request, RequestState
from baton.engine.runner import Runner
from baton.protos.clock import ManualClock
from baton.protos.types import GenerateRequest, SamplingParams, TokenLogprob

VOCAB = 128
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def save_model(folder: Path, name: str, **changes: object) -> transformers.PreTrainedModel:
    """Writes a random model of an architecture such as "Llama"; returns transformers' own."""
    torch.manual_seed(0)
    values: dict[str, object] = {**SIZES, **changes}
    config = getattr(transformers, f"{name}Config")(**values)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # The default init is so flat that greedy tokens repeat; norms should matter too.
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


def edit_json(path: Path, **changes: object) -> None:
    """Sets keys of a JSON file; a key set to `...` is removed."""
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def runner_config(folder: Path, **changes: object) -> EngineConfig:
    values: dict[str, object] = {
        "model_dir": str(folder),
        "device": "cpu",
        "block_size": 8,
        "num_blocks": 256,
        "max_running": 24,
        **changes,
    }
    return EngineConfig(**values)  # type: ignore[arg-type]


class Driver:
    """Requests in a runner's batch. `logprobs` and `prompt_logprobs` collect what steps report."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.requests: dict[str, Request] = {}
        self.logprobs: dict[str, list[TokenLogprob]] = {}
        self.prompt_logprobs: dict[str, list[TokenLogprob]] = {}
        self._slots = itertools.count()
        # Blocks are handed out from the far end, so that none sits where a naive index would look.
        self._blocks = iter(range(runner.pool.num_blocks - 1, -1, -1))

    def add(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        name: str = "r",
        output: Sequence[int] = (),
    ) -> Request:
        request = Request(
            GenerateRequest(
                request_id=name,
                prompt_token_ids=prompt,
                sampling=sampling or SamplingParams(temperature=0.0),
                output_token_ids=output,
            ),
            arrival=0,
            state=RequestState.QUEUED,
            now_s=0.0,
        )
        request.slot = next(self._slots)
        self.requests[name] = request
        self.runner.add_row(request)
        return request

    def step(self, shares: Sequence[tuple[Request, int]]) -> RunResult:
        """Computes `count` tokens of each request and books the results."""
        rows = []
        for request, count in shares:
            end = request.num_computed_tokens + count
            while len(request.block_ids) * self.runner.pool.layout.block_size < end:
                request.block_ids.append(next(self._blocks))
            rows.append(
                ScheduledRow(
                    request=request, num_new_tokens=count, samples=end == request.num_tokens
                )
            )
        result = self.runner.run(rows)
        sampled = iter(zip(result.sampled, result.logprobs, strict=True))
        for row in rows:
            row.request.num_computed_tokens += row.num_new_tokens
            if row.samples:
                token, logprob = next(sampled)
                row.request.token_ids.append(token)
                if logprob is not None:
                    self.logprobs.setdefault(row.request.request_id, []).append(logprob)
        for name, found in result.prompt_logprobs.items():
            self.prompt_logprobs.setdefault(name, []).extend(found)
        return result

    def generate(self, count: int, *, chunk: int = 1 << 30) -> dict[str, list[int]]:
        """Runs all requests together until each has `count` output tokens; prompts in chunks."""
        while True:
            shares = [
                (request, min(chunk, request.num_tokens - request.num_computed_tokens))
                for request in self.requests.values()
                if request.num_output_tokens < count
            ]
            if not shares:
                return {
                    name: request.token_ids[request.num_prompt_tokens :]
                    for name, request in self.requests.items()
                }
            self.step(shares)


def new_driver(folder: Path, **changes: object) -> Driver:
    return Driver(Runner(runner_config(folder, **changes), ManualClock()))
