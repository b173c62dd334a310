"""Computes the steps that the scheduler decides on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Final

import numpy as np
import torch
from torch import Tensor

from baton.engine.batch import ModelInfo, RunResult, ScheduledRow
from baton.engine.batch_state import BatchState, StepShape
from baton.engine.config import EngineConfig
from baton.engine.device import Platform, resolve_platform
from baton.engine.grammar.step_masks import StepMasks
from baton.engine.kv_pool import KVPool
from baton.engine.loader import fill_random, load_weights, model_digest
from baton.engine.memory import pool_blocks
from baton.engine.model_info import ModelSpec, read_model_spec
from baton.engine.models.layers import CausalLM
from baton.engine.models.registry import build_model
from baton.engine.models.weights import Weights
from baton.engine.parallel.group import ParallelGroup, SingleGroup
from baton.engine.parallel.sampling import SharedSampler
from baton.engine.request import Request
from baton.engine.results import Asked, PendingStep, prompt_shares, prompt_tensors
from baton.engine.sampler import Sampler
from baton.engine.sampling_state import SamplingState
from baton.engine.transfer import Upload
from baton.kvtransfer.layout import rank_layout
from baton.protos.clock import Clock
from baton.protos.errors import ConfigError, ModelLoadError

RANDOM_WEIGHTS_SEED: Final = 0

_log = logging.getLogger(__name__)


class Runner:
    """One model on one device, with its KV pool and the state of its batch."""

    model: ModelInfo
    pool: KVPool

    def __init__(
        self, config: EngineConfig, clock: Clock, group: ParallelGroup | None = None
    ) -> None:
        """Loads the model and allocates the pool. Raises ConfigError, ModelLoadError.

        group: the ranks that share the model, each with a runner of its own that gets the same
            calls; this one has the part of the group's `shards`. None: it has the whole model.
        """
        started_s = clock.now_s()
        group = group or SingleGroup()
        spec = read_model_spec(config.model_dir)
        platform = resolve_platform(config.device, config.dtype)
        max_model_len = _max_model_len(config, spec)
        device = platform.device
        self._device = device
        # Kernels launch on the thread's current device, and steps run on a thread of their own.
        self._on_device = torch.cuda.device(device) if platform.is_cuda else nullcontext()
        self._model = _load(config, spec, Weights(platform, group), max_model_len)
        num_ranks = group.shards.size
        self.model = _model_info(config, spec, platform, max_model_len, num_ranks)
        self._batch = BatchState(config.max_running, max_model_len, config.block_size, device)
        self._sampling = SamplingState(
            config.max_running, spec.vocab_size, spec.eos_token_ids, device
        )
        self._masks = StepMasks(spec.vocab_size, device)
        self._sampler = SharedSampler(Sampler(self._sampling, device), group)
        layout = rank_layout(
            tp_rank=group.shards.rank,
            tp_size=group.shards.size,
            total_heads=spec.num_kv_heads,
            num_layers=spec.num_layers,
            block_size=config.block_size,
            head_dim=spec.head_dim,
            dtype=platform.dtype_name,
        )
        num_blocks = group.minimum(pool_blocks(config, layout, self._model, platform))
        self.pool = KVPool(layout, num_blocks, device)
        _log.info(
            "loaded %s on %s in %.1f s: %d KV blocks of %d tokens",
            spec.name,
            device,
            clock.now_s() - started_s,
            self.pool.num_blocks,
            config.block_size,
        )

    def add_row(self, request: Request) -> None:
        """The request entered the batch in `request.slot`, with its blocks and tokens known."""
        self._batch.write(request)
        self._sampling.write(request)

        self._masks.add_row(request)

    def remove_row(self, request: Request) -> None:
        """The request left the batch. The next add_row overwrites the slot."""
        self._masks.remove_row(request)

    @property
    def overlaps(self) -> bool:
        """Whether steps run beside the host."""
        return self._device.type == "cuda"

    @torch.inference_mode()
    def launch(self, rows: Sequence[ScheduledRow]) -> PendingStep:
        """Starts a step: computes every row and samples where asked, without waiting for it.

        The next step may be launched before this one is waited for: sampled tokens stay on the
        device, where the next step reads them.
        """
        if not rows:
            return PendingStep(Asked(), [])
        with self._on_device:
            return self._launch(rows)

    def run(self, rows: Sequence[ScheduledRow]) -> RunResult:
        """One step, start to end."""
        return self.launch(rows).wait()

    def watch(self, on_failure: Callable[[BaseException], None]) -> None:
        """Nothing to watch: what fails here fails in a step."""

    def close(self) -> None:
        """Waits for work under way on the device."""
        self._masks.close()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _launch(self, rows: Sequence[ScheduledRow]) -> PendingStep:
        upload = Upload(self._device)
        shape = StepShape.of(rows)
        draft = self._batch.draft(rows, shape, upload)
        sampling = np.flatnonzero([row.samples for row in rows])
        slots, next_positions = shape.slots[sampling], (shape.starts + shape.lens)[sampling]
        plan = self._sampling.plan(slots, next_positions, upload)
        last_tokens = upload.add(shape.ends[sampling] - 1)
        write_places = upload.add(slots * self._batch.width + next_positions)
        sent = upload.send()
        self._masks.begin(rows, sampling)

        tokens = self._batch.tokens.view(-1)
        token_places = sent[draft.token_places]
        hidden = self._model.forward(
            tokens[token_places],
            self._batch.forward_batch(draft, sent, self.pool.layers, self._model.windows),
        )
        results: list[Tensor] = []
        if len(sampling):
            some = len(sampling) < shape.ends[-1]
            logits = self._model.logits(hidden[sent[last_tokens]] if some else hidden)
            plan_sent = plan.finish(sent, self._masks.finish())
            chosen, logprobs = self._sampler.sample(logits, plan_sent)
            tokens[sent[write_places]] = chosen.to(tokens.dtype)
            results += [chosen, *(logprobs or ())]
        shares = prompt_shares(rows)
        if shares:
            following = tokens[token_places + 1].long()
            results += prompt_tensors(self._model, hidden, following, shares)
        num_top = tuple(rows[i].request.sampling.logprobs for i in sampling)
        step = PendingStep(Asked(num_top=num_top, shares=tuple(shares)), results)
        self._masks.launched(step)
        return step


def _load(config: EngineConfig, spec: ModelSpec, weights: Weights, max_model_len: int) -> CausalLM:
    try:
        model = build_model(weights, spec, max_model_len)
    except RuntimeError as error:
        raise ModelLoadError(
            f"{config.model_dir} does not fit into the memory of {weights.platform.device}: {error}"
        ) from error
    if config.random_weights:
        fill_random(weights, RANDOM_WEIGHTS_SEED)
    else:
        load_weights(weights, config.model_dir)
    return model


def _max_model_len(config: EngineConfig, spec: ModelSpec) -> int:
    wanted = config.max_model_len
    if wanted is not None and wanted > spec.max_model_len:
        raise ConfigError(
            f"max_model_len is {wanted}, but {spec.name} reaches {spec.max_model_len} tokens",
            param="max_model_len",
        )
    return wanted or spec.max_model_len


def _model_info(
    config: EngineConfig, spec: ModelSpec, platform: Platform, max_model_len: int, num_ranks: int
) -> ModelInfo:
    ranks = f" on {num_ranks} ranks" if num_ranks > 1 else ""
    random_weights = f"{RANDOM_WEIGHTS_SEED}{ranks}" if config.random_weights else None
    return ModelInfo(
        name=spec.name,
        digest=model_digest(config.model_dir, random_weights=random_weights),
        architecture=spec.architecture,
        vocab_size=spec.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=spec.eos_token_ids,
        num_layers=spec.num_layers,
        dtype=platform.dtype_name,
        device=str(platform.device),
    )
