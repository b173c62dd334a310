"""The sampler against plain per-row references and known distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from baton.engine.noise import row_keys, seed_key, token_keys
from baton.engine.request import Request, RequestState
from baton.engine.sampler import Sampled, Sampler
from baton.engine.sampling_state import SamplingState
from baton.engine.transfer import Upload
from baton.kernels.sampling.reference import gumbel, random_bits
from baton.protos.types import GenerateRequest, SamplingParams

CPU = torch.device("cpu")
EOS = 3
VOCAB = 23


class Bench:
    """A sampler over rows with prompts, outputs and parameters of their own."""

    def __init__(self, vocab: int = VOCAB, max_rows: int = 32) -> None:
        self.state = SamplingState(max_rows, vocab, (EOS,), CPU)
        self.sampler = Sampler(self.state, CPU)
        self.requests: list[Request] = []

    def add(
        self,
        sampling: SamplingParams,
        prompt: Sequence[int] = (1, 2),
        output: Sequence[int] = (),
        slot: int | None = None,
    ) -> None:
        request = Request(
            GenerateRequest(
                request_id=str(len(self.requests)),
                prompt_token_ids=prompt,
                output_token_ids=output,
                sampling=sampling,
            ),
            arrival=0,
            state=RequestState.QUEUED,
            now_s=0.0,
        )
        request.slot = len(self.requests) if slot is None else slot
        self.state.write(request)
        self.requests.append(request)

    def sample(self, logits: torch.Tensor) -> Sampled:
        upload = Upload(CPU)
        slots = np.array([r.slot for r in self.requests], dtype=np.int64)
        positions = np.array([r.num_tokens for r in self.requests], dtype=np.int64)
        draft = self.state.plan(slots, positions, upload)
        sampled = self.sampler.sample(logits.clone(), draft.finish(upload.send(), None))
        for request, token in zip(self.requests, sampled.tokens.tolist(), strict=True):
            request.token_ids.append(token)
        return sampled


def mixed_logits(rows: int, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def frequencies(sampling: SamplingParams, logits: torch.Tensor, draws: int = 2000) -> torch.Tensor:
    """Counts per token of `draws` seeds."""
    bench = Bench(vocab=len(logits), max_rows=draws)
    for seed in range(draws):
        values = {name: getattr(sampling, name) for name in sampling.__slots__}
        bench.add(SamplingParams(**{**values, "seed": seed}))
    tokens = bench.sample(logits.expand(draws, -1)).tokens
    return torch.bincount(tokens, minlength=len(logits))


def chi_square_limit(degrees: int) -> float:
    """About the 99.99th percentile (Wilson and Hilferty's approximation)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3


def assert_distribution(counts: torch.Tensor, expected: torch.Tensor) -> None:
    assert not counts[expected == 0].any()
    inside = expected > 0
    mean = expected[inside] * counts.sum()
    statistic = ((counts[inside] - mean) ** 2 / mean).sum().item()
    assert statistic < chi_square_limit(max(int(inside.sum()) - 1, 1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = mixed_logits(1, 12)[0]
    counts = frequencies(SamplingParams(temperature=temperature), logits)
    assert_distribution(counts, (logits / temperature).softmax(-1))


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(top_k=4),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.15),
        SamplingParams(top_k=6, top_p=0.8, temperature=1.5),
        SamplingParams(top_k=9, top_p=0.9, min_p=0.1, temperature=0.8),
        SamplingParams(top_k=1),
        SamplingParams(top_p=1e-6),
        SamplingParams(min_p=1.0),
    ],
    ids=str,
)
def test_filters_keep_the_right_mass(sampling: SamplingParams) -> None:
    logits = mixed_logits(1, 16, seed=3)[0]
    scaled = (logits / sampling.temperature).double()
    probs = scaled.softmax(-1)
    probs[probs < sampling.min_p * probs.max() * (1 - 1e-9)] = 0
    order = probs.argsort(descending=True)
    if sampling.top_k:
        probs[order[sampling.top_k :]] = 0
    probs /= probs.sum()
    mass = 0.0
    for token in order.tolist():
        if mass >= sampling.top_p:
            probs[token] = 0
        mass += probs[token].item()
    assert_distribution(frequencies(sampling, logits, 1000), (probs / probs.sum()).float())


def test_top_k_breaks_ties_by_token_id() -> None:
    logits = torch.tensor([0.0, 5.0, 5.0, 5.0, 5.0, 1.0])
    counts = frequencies(SamplingParams(top_k=2), logits, 200)
    assert counts.nonzero().flatten().tolist() == [1, 2]


def test_greedy_rows_in_a_random_batch_take_the_argmax() -> None:
    bench = Bench()
    logits = mixed_logits(8)
    for row in range(8):
        bench.add(SamplingParams(temperature=0.0 if row % 2 else 1.0, top_p=0.9, seed=row))
    tokens = bench.sample(logits).tokens
    assert torch.equal(tokens[1::2], logits.argmax(-1)[1::2])


def test_a_row_draws_the_same_in_any_batch() -> None:
    sampling = SamplingParams(temperature=1.3, top_k=7, top_p=0.95, min_p=0.02, seed=-(2**62))
    logits = mixed_logits(17, seed=5)
    alone, crowd = Bench(), Bench()
    alone.add(sampling, output=(4, 5), slot=9)
    for row in range(16):
        bias = ((row, 50.0),) if row % 3 == 0 else ()
        crowd.add(
            SamplingParams(temperature=row % 4 / 2, seed=row, top_k=row, logit_bias=bias),
            prompt=[1] * (row + 1),
        )
    crowd.add(sampling, output=(4, 5))
    for step in range(40):
        one = alone.sample(logits[16:] + step % 3).tokens
        assert crowd.sample(logits + step % 3).tokens[16] == one[0], step


def reference_penalties(logits: torch.Tensor, request: Request) -> torch.Tensor:
    """Token by token, as the definitions read."""
    wanted, out = request.sampling, logits.clone()
    prompt = request.token_ids[: request.num_prompt_tokens]
    output = request.token_ids[request.num_prompt_tokens :]
    for token, bias in wanted.logit_bias:
        out[token] += bias
    for token in range(len(out)):
        value = out[token].item()
        if token in prompt or token in output:
            factor = wanted.repetition_penalty
            value = value / factor if value > 0 else value * factor
        value -= wanted.frequency_penalty * output.count(token)
        value -= wanted.presence_penalty * (token in output)
        out[token] = value
    return out


def test_penalties_and_bias_match_the_definitions_step_by_step() -> None:
    bench = Bench()
    parameters = [
        {},
        {"repetition_penalty": 1.7},
        {"presence_penalty": 1.5},
        {"frequency_penalty": -1.1},
        {"frequency_penalty": 1.9, "presence_penalty": -0.5, "repetition_penalty": 0.6},
        {"logit_bias": ((4, 6.0), (9, -100.0))},
        {"logit_bias": ((0, 3.5),), "repetition_penalty": 1.3},
    ]
    for row, changes in enumerate(parameters):
        sampling = SamplingParams(temperature=0.0, **changes)  # type: ignore[arg-type]
        bench.add(sampling, prompt=[1, 5, 5, row], output=[7, 7, 2] if row % 2 else [])
    for step in range(12):
        logits = mixed_logits(len(parameters), seed=100 + step // 4)
        expected = [
            reference_penalties(line, request).argmax().item()
            for line, request in zip(logits, bench.requests, strict=True)
        ]
        assert bench.sample(logits).tokens.tolist() == expected, step


def test_a_slot_forgets_its_last_request() -> None:
    bench = Bench()
    bench.add(
        SamplingParams(
            temperature=1.0,
            top_k=1,
            presence_penalty=2.0,
            logit_bias=((1, 100.0), (2, 50.0)),
            min_tokens=5,
            max_tokens=9,
            logprobs=3,
        ),
        output=[4, 4],
        slot=0,
    )
    logits = mixed_logits(1)
    assert bench.sample(logits).tokens.tolist() == [1]
    bench.requests.clear()
    bench.add(SamplingParams(temperature=0.0, logit_bias=((5, 90.0),)), slot=0)
    sampled = bench.sample(logits)
    assert sampled.tokens.tolist() == [5]
    assert sampled.logprobs is None


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_min_tokens_bans_ends_until_reached(ignore_eos: bool) -> None:
    bench = Bench()
    sampling = SamplingParams(
        temperature=0.0, min_tokens=2, stop_token_ids=(8,), ignore_eos=ignore_eos
    )
    bench.add(sampling)
    bench.add(sampling, output=[5])
    logits = torch.zeros(2, VOCAB)
    logits[:, EOS], logits[:, 8], logits[:, 11] = 9.0, 8.0, 7.0
    banned = EOS if ignore_eos else 11
    assert bench.sample(logits).tokens.tolist() == [banned, banned]
    assert bench.sample(logits).tokens.tolist() == [banned, EOS]
    assert bench.sample(logits).tokens.tolist() == [EOS, EOS]


def test_logprobs_are_of_the_raw_distribution() -> None:
    bench = Bench()
    logits = mixed_logits(3)
    bench.add(SamplingParams(temperature=0.3, top_k=2, logit_bias=((6, 100.0),), logprobs=4))
    bench.add(SamplingParams(temperature=0.0))
    bench.add(SamplingParams(temperature=0.0, logprobs=0))
    sampled = bench.sample(logits)
    assert sampled.tokens[0] == 6
    assert sampled.logprobs is not None
    reference = logits[[0, 2]].log_softmax(-1)
    chosen = sampled.tokens[[0, 2]]
    torch.testing.assert_close(sampled.logprobs.values, reference.gather(1, chosen[:, None])[:, 0])
    rank = (logits[0] > logits[0, 6]).sum().item() + 1
    assert sampled.logprobs.ranks.tolist() == [rank, 1]
    best = reference[0].topk(4)
    assert sampled.logprobs.top_ids[0].tolist() == best.indices.tolist()
    torch.testing.assert_close(sampled.logprobs.top_values[0], best.values)


def test_noise_is_the_documented_integer_function() -> None:
    """A second implementation in Python integers; widths leave tails in vector loops."""
    mask = 0xFFFFFFFF
    keys = row_keys(np.array([seed_key(7), seed_key(-5)]), np.array([0, 12345]))
    tokens = token_keys(67, CPU)
    bits = random_bits(tokens, torch.from_numpy(keys))
    for row in range(2):
        for token in range(67):
            x = (int(tokens[token]) + int(keys[0, row])) & mask
            x = (x ^ (x >> 16)) * 0x21F0AAAD & mask
            x ^= int(keys[1, row]) & mask
            x = (x ^ (x >> 15)) * 0xD35A2D97 & mask
            x ^= x >> 15
            assert int(bits[row, token]) == x & 0x7FFFFFFF


def test_noise_is_uniform_and_independent_of_neighbours() -> None:
    positions = np.arange(2000)
    rows = torch.from_numpy(row_keys(np.full(2000, seed_key(42)), positions))
    bits = random_bits(token_keys(50, CPU), rows)
    cells = torch.bincount((bits >> 23).flatten(), minlength=256)
    assert_distribution(cells, torch.full((256,), 1 / 256))
    unit = bits.double() / 2**31
    for first, second in ((unit[1:], unit[:-1]), (unit[:, 1:], unit[:, :-1])):
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert abs(correlation) < 0.015


def test_noise_is_finite_at_both_ends_and_differs_by_seed_and_position() -> None:
    keys = torch.from_numpy(
        row_keys(np.array([seed_key(seed) for seed in (1, 1, 2)]), np.array([5, 6, 5]))
    )
    noise = gumbel(token_keys(100_000, CPU), keys)
    assert noise.isfinite().all()
    assert abs(noise.mean() - 0.5772) < 0.01
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
