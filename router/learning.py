"""Time models of a fleet, learned from what its workers report and from what requests took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from baton.protos.types import Role, StepSample, TransferSample, WorkerLoad
from baton.router.fit import PRIOR_SPREAD, RobustFit
from baton.router.times import (
    DecodeTimes,
    ModelTimes,
    Near,
    PrefillTimes,
    Transfers,
    TransferTimes,
    WorkerTimes,
)

# A new worker is believed to be like its pool, give or take this factor of each coefficient.
_POOL_SPREAD: Final = 3.0
# The pool learns from every so many samples of each worker.
_POOL_SHARE: Final = 4
# From so many samples on a worker's own models are used.
_TRUSTED_SAMPLES: Final = 8
_MAX_PAIRS: Final = 1 << 16
# A coefficient of 0 would never be learned: the least that a prior can say.
_LEAST_PRIOR: Final = 1e-15
_OVERHEAD_WEIGHT: Final = 0.05
_MAX_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerError:
    """How well a worker's models predict its steps: mean relative error, and of how many."""

    worker_id: str
    role: Role
    prefill_error: float
    num_prefill_samples: int
    decode_error: float
    num_decode_samples: int


class _StepModel:
    """The fits of one worker, or of a pool."""

    __slots__ = ("chunk_tokens", "decode", "prefill", "role")

    def __init__(self, prior: WorkerTimes, role: Role, spread: float = PRIOR_SPREAD) -> None:
        prefill, decode = prior.prefill, prior.decode
        self.role = role
        self.chunk_tokens = prefill.chunk_tokens
        self.prefill = _fit(
            (prefill.fixed_s, prefill.per_token_s, prefill.per_pair_s, prefill.per_row_s),
            spread,
        )
        self.decode = _fit((decode.fixed_s, decode.per_row_s, decode.per_kv_token_s), spread)

    def learn(self, sample: StepSample) -> int:
        """How many samples of its kind there have been, this one included."""
        if sample.num_new_tokens:
            features = (1.0, sample.num_new_tokens, sample.num_pairs, sample.num_rows)
            self.prefill.update(features, sample.seconds)
            return self.prefill.num_samples
        self.decode.update((1.0, sample.num_rows, sample.kv_tokens), sample.seconds)
        return self.decode.num_samples


class ModelBook:
    """Everything that is learned of a fleet. Belongs to one thread.

    A worker's own models begin as its pool's, and a pool's as the prior: a decode pool that nobody
    has measured takes over what the prefill pool showed, and the other way round, since both run
    one model.
    """

    def __init__(self, prior: ModelTimes) -> None:
        self._prior = prior
        self._pools = {
            Role.PREFILL: _StepModel(prior.prefill_pool, Role.PREFILL),
            Role.DECODE: _StepModel(prior.decode_pool, Role.DECODE),
        }
        self._workers: dict[str, _StepModel] = {}
        transfer = (prior.transfer.fixed_s, prior.transfer.per_byte_s)
        self._near = [_fit(transfer) for _ in Near]
        self._pairs: dict[tuple[str, str], RobustFit] = {}
        self._pair_times: dict[tuple[str, str], TransferTimes] = {}
        self._transfers = Transfers((prior.transfer,) * 3, self._pair_times)
        self._overhead_s = {"local": 0.001, "remote": prior.handshake_s + 0.001}
        self.kv_bytes_per_token = prior.kv_bytes_per_token

    def observe(self, worker_id: str, role: Role, load: WorkerLoad) -> None:
        """Learns from one report. Engines of both roles count as decode workers."""
        pool = self._pools[_pool_role(role)]
        worker = self._workers.get(worker_id)
        if worker is None:
            worker = self._workers[worker_id] = self._new(worker_id, role)
        # KV travels in the format of the worker that decodes it.
        if load.kv_bytes_per_token and role is not Role.PREFILL:
            self.kv_bytes_per_token = load.kv_bytes_per_token
        chunk_tokens = min(load.max_step_tokens, _MAX_CHUNK) or worker.chunk_tokens
        worker.chunk_tokens = pool.chunk_tokens = chunk_tokens
        for sample in load.steps:
            if worker.learn(sample) % _POOL_SHARE == 1:
                pool.learn(sample)

    def moved(self, prefill: str, sample: TransferSample, near: Near) -> None:
        """Learns from one push of KV."""
        features, pair = (1.0, sample.num_bytes), (prefill, sample.decode)
        pooled = self._near[near]
        pooled.update(features, sample.seconds)
        fit = self._pairs.get(pair)
        if fit is None:
            if len(self._pairs) >= _MAX_PAIRS:
                return
            fit = self._pairs[pair] = _fit(pooled.coefficients, _POOL_SPREAD)
        fit.update(features, sample.seconds)
        self._pair_times[pair] = _transfer(fit)
        known = tuple(
            _transfer(near_fit) if near_fit.num_samples else self._prior.transfer
            for near_fit in self._near
        )
        self._transfers = Transfers((known[0], known[1], known[2]), self._pair_times)

    def answered(self, kind: str, overhead_s: float) -> None:
        """Learns what a request took beside what its workers accounted for.

        kind: `local` or `remote`. A request that was late for a reason of its own counts little.
        """
        known = self._overhead_s[kind]
        limit = 3.0 * known + 0.001
        self._overhead_s[kind] += _OVERHEAD_WEIGHT * (min(max(overhead_s, 0.0), limit) - known)

    def times(self, worker_id: str, role: Role) -> WorkerTimes:
        """A worker's models; what it has hardly measured yet is whatever has been measured most of
        its pool and the other: pitting a measured worker against a guess, or against a slow first
        step, would never let the guess be corrected."""
        pool = self._pools[_pool_role(role)]
        worker = self._workers.get(worker_id)
        own = pool if worker is None else worker
        chunk_tokens = own.chunk_tokens
        pools = list(self._pools.values())
        prefill = _best(own.prefill, pool.prefill, [each.prefill for each in pools])
        decode = _best(own.decode, pool.decode, [each.decode for each in pools])
        return WorkerTimes(prefill=_prefill(prefill, chunk_tokens), decode=_decode(decode))

    def learned(self, role: Role) -> WorkerTimes | None:
        """A pool's models; None while what the pool is for (computing prompts, or decoding) has
        hardly been measured anywhere.
        """
        prompts = role is Role.PREFILL
        fits = [each.prefill if prompts else each.decode for each in self._pools.values()]
        known = any(fit.num_samples >= _TRUSTED_SAMPLES for fit in fits)
        return self.times("", role) if known else None

    @property
    def transfers(self) -> Transfers:
        return self._transfers

    @property
    def handshake_s(self) -> float:
        """What a remote prefill costs beside waiting, computing and moving KV."""
        return max(self._overhead_s["remote"] - self._overhead_s["local"], 0.0)

    def forget(self, worker_id: str) -> None:
        """A worker is gone; what its pool learned from it stays."""
        self._workers.pop(worker_id, None)
        for pair in [pair for pair in self._pairs if worker_id in pair]:
            del self._pairs[pair]
            self._pair_times.pop(pair, None)

    def export(self, source: str = "") -> ModelTimes:
        """The pools' models, to begin with after a restart, or to simulate the fleet with."""
        fits = [fit for fit in self._near if fit.num_samples]
        return ModelTimes(
            prefill_pool=self.times("", Role.PREFILL),
            decode_pool=self.times("", Role.DECODE),
            transfer=_transfer(max(fits, key=_samples)) if fits else self._prior.transfer,
            kv_bytes_per_token=self.kv_bytes_per_token,
            handshake_s=self.handshake_s,
            source=source,
        )

    def errors(self) -> list[WorkerError]:
        """Of every worker that has reported."""
        return [
            WorkerError(
                worker_id=worker_id,
                role=worker.role,
                prefill_error=worker.prefill.error,
                num_prefill_samples=worker.prefill.num_samples,
                decode_error=worker.decode.error,
                num_decode_samples=worker.decode.num_samples,
            )
            for worker_id, worker in self._workers.items()
        ]

    def _new(self, worker_id: str, role: Role) -> _StepModel:
        """A worker's own models, as far as others of its kind tell."""
        pools = self._pools.values()
        known = any(pool.prefill.num_samples or pool.decode.num_samples for pool in pools)
        spread = _POOL_SPREAD if known else PRIOR_SPREAD
        return _StepModel(self.times(worker_id, role), role, spread)


def _best(own: RobustFit, pool: RobustFit, pools: list[RobustFit]) -> RobustFit:
    """The first of the worker's and its pool's that is sure, else the one that knows most."""
    for fit in (own, pool):
        if fit.num_samples >= _TRUSTED_SAMPLES:
            return fit
    return max([pool, *pools], key=_samples)


def _pool_role(role: Role) -> Role:
    return Role.PREFILL if role is Role.PREFILL else Role.DECODE


def _fit(prior: Sequence[float], spread: float = PRIOR_SPREAD) -> RobustFit:
    return RobustFit([max(value, _LEAST_PRIOR) for value in prior], spread=spread)


def _prefill(fit: RobustFit, chunk_tokens: int) -> PrefillTimes:
    fixed_s, per_token_s, per_pair_s, per_row_s = fit.coefficients
    return PrefillTimes(
        fixed_s=fixed_s,
        per_token_s=per_token_s,
        per_pair_s=per_pair_s,
        per_row_s=per_row_s,
        chunk_tokens=chunk_tokens,
    )


def _decode(fit: RobustFit) -> DecodeTimes:
    fixed_s, per_row_s, per_kv_token_s = fit.coefficients
    return DecodeTimes(fixed_s=fixed_s, per_row_s=per_row_s, per_kv_token_s=per_kv_token_s)


def _transfer(fit: RobustFit) -> TransferTimes:
    fixed_s, per_byte_s = fit.coefficients
    return TransferTimes(fixed_s=fixed_s, per_byte_s=per_byte_s)


def _samples(fit: RobustFit) -> int:
    return fit.num_samples
