"""Computes the steps that the scheduler decides on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Final

import torch
from torch import Tensor

from baton.engine.adapters.pool import AdapterPool
from baton.engine.batch import ModelInfo, RunResult, ScheduledRow
from baton.engine.batch_state import WRITE_PLACES, BatchState, StepShape
from baton.engine.config import EngineConfig
from baton.engine.device import Platform, check_device, resolve_platform
from baton.engine.grammar.statistics import MaskStatistics
from baton.engine.grammar.step_masks import StepMasks
from baton.engine.graphs import (
    Adapted,
    Bucket,
    StepGraphs,
    StepResult,
    decode_buckets,
    mixed_buckets,
    with_adapters,
)
from baton.engine.kv_pool import KVPool
from baton.engine.loader import fill_random, load_weights, model_digest
from baton.engine.memory import graph_rows, graph_tokens, pool_blocks
from baton.engine.model_info import ModelSpec, read_model_spec
from baton.engine.models.forward_batch import ForwardBatch
from baton.engine.models.layers import CausalLM
from baton.engine.models.registry import build_model
from baton.engine.models.weights import Weights
from baton.engine.parallel.group import ParallelGroup, SingleGroup
from baton.engine.parallel.sampling import SharedSampler
from baton.engine.request import Request
from baton.engine.results import Asked, PendingStep, prompt_shares, prompt_tensors
from baton.engine.sampler import Sampler
from baton.engine.sampling_state import SamplingState
from baton.engine.stages import Stages
from baton.engine.tiers.ranks import TierRank
from baton.engine.transfer import Upload
from baton.kernels.lora import few_adapters
from baton.kernels.sampling import draw
from baton.kvtransfer.group import RankPool
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
        self.stages = Stages(clock)
        group = group or SingleGroup()
        spec = read_model_spec(config.model_dir)
        with self.stages.stage("device"):
            platform = resolve_platform(config.device, config.dtype)
            check_device(platform, spec)
        max_model_len = _max_model_len(config, spec)
        device = platform.device
        self._device = device
        # Kernels launch on the thread's current device, and steps run on a thread of their own.
        self._on_device = torch.cuda.device(device) if platform.is_cuda else nullcontext()
        weights = Weights(platform, group)
        with self.stages.stage("weights"):
            self._model = _load(config, spec, weights, max_model_len)
        self.adapters: AdapterPool | None = None
        if config.max_loras:
            self.adapters = AdapterPool(weights, spec, config.max_loras, config.max_lora_rank)
        num_ranks = group.shards.size
        # Among several ranks the first one draws for all.
        self._draws_itself = num_ranks == 1
        self.model = _model_info(config, spec, platform, max_model_len, num_ranks)
        self._batch = BatchState(
            config.max_running,
            max_model_len,
            config.block_size,
            device,
            adapter_slots=config.max_loras,
        )
        self._sampling = SamplingState(
            config.max_running, spec.vocab_size, spec.eos_token_ids, device
        )
        self._masks = StepMasks(spec.vocab_size, device)
        self._sampler = SharedSampler(Sampler(self._sampling, device), group)
        fp8 = config.kv_cache_dtype == "fp8_e4m3"
        layout = rank_layout(
            tp_rank=group.shards.rank,
            tp_size=group.shards.size,
            total_heads=spec.num_kv_heads,
            num_layers=spec.num_layers,
            block_size=config.block_size,
            head_dim=spec.head_dim,
            dtype="float8_e4m3fn" if fp8 else platform.dtype_name,
        )
        with self.stages.stage("memory"):
            num_blocks = group.minimum(pool_blocks(config, layout, self._model, platform))
            self.pool = KVPool(layout, num_blocks, device)
        with self.stages.stage("graphs"):
            self._graphs = self._capture(config, platform)
        _log.info(
            "%s on %s is ready (%s): %d KV blocks of %d tokens",
            *(spec.name, device, self.stages, num_blocks, config.block_size),
        )

    def _capture(self, config: EngineConfig, platform: Platform) -> StepGraphs:
        """The graphs of a full-size engine; their outputs have places of their own."""
        rows, tokens = graph_rows(config, platform), graph_tokens(config, platform)
        decodes = decode_buckets(rows)
        mixed = mixed_buckets(tokens, config.max_running)
        spec, empty = self._model.spec, self._model.embed.new_empty
        self._logits = empty(rows, spec.vocab_size)
        self._hidden = empty(max((b.num_tokens for b in mixed), default=0), spec.hidden_size)
        buckets = [*decodes, *mixed]
        if self.adapters is not None:
            buckets += with_adapters(buckets)
        graphs = StepGraphs(self._forward, buckets, self._device)

        def nothing(bucket: Bucket, staging: Tensor | None) -> list[Tensor]:
            upload = Upload(self._device)
            self._batch.empty_step(bucket, upload)
            sent = upload.send(staging)
            return sent[:]

        with self._on_device:
            graphs.capture(nothing)
        return graphs

    def add_row(self, request: Request) -> None:
        """The request entered the batch in `request.slot`, with its blocks and tokens known."""
        if self.adapters is not None and request.adapter_slot >= 0:
            self.adapters.wait(request.adapter_slot)
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

    @property
    def other_pools(self) -> Sequence[RankPool]:
        """This runner's pool is the only one."""
        return ()

    @property
    def other_tiers(self) -> Sequence[TierRank]:
        """There are no other ranks."""
        return ()

    def watch(self, on_failure: Callable[[BaseException], None]) -> None:
        """Nothing to watch: what fails here fails in a step."""

    def mask_statistics(self) -> MaskStatistics:
        """What grammars have cost since this was built."""
        return self._masks.statistics()

    def close(self) -> None:
        """Waits for work under way on the device."""
        self._masks.close()
        if self.adapters is not None:
            self.adapters.close()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _launch(self, rows: Sequence[ScheduledRow]) -> PendingStep:
        upload = Upload(self._device)
        shape = StepShape.of(rows)
        shares = prompt_shares(rows)
        adapter_slots = self._batch.adapters.of(shape.slots)
        num_tokens = int(shape.ends[-1])
        adapted = Adapted.NONE
        if adapter_slots is not None:
            few = num_tokens == len(rows) and few_adapters(adapter_slots)
            adapted = Adapted.FEW if few else Adapted.ANY
        bucket = self._graphs.fit(len(rows), num_tokens, adapters=adapted)
        if bucket is not None and bucket.decodes and shares:
            # Prompt log-probabilities need the hidden states, of which such a graph leaves none.
            bucket = None
        draft = self._batch.draft(rows, shape, upload, bucket)
        sampling = shape.sampling
        slots, next_positions = shape.slots[sampling], (shape.starts + shape.lens)[sampling]
        plan = self._sampling.plan(slots, next_positions, upload)
        # What the sampler needs to know of rows; a graph of greedy decodes samples by itself.
        last_tokens = upload.add(shape.ends[sampling] - 1)
        write_places = upload.add(slots * self._batch.width + next_positions)
        is_logits = bucket is not None and bucket.decodes
        head_plan = None
        if adapter_slots is not None and len(sampling) and not is_logits:
            head_plan = self._batch.adapters.plan(adapter_slots[sampling], len(sampling), upload)
        sent = upload.send(None if bucket is None else self._graphs.staging)
        self._masks.begin(rows, sampling)

        self._batch.take_news(draft, sent)
        if bucket is None:
            bounds = draft.max_query_len, draft.max_context_len
            made = StepResult(self._hidden_of(draft.inputs(sent), bounds)[0])
        else:
            made = self._graphs.run(bucket, lambda: draft.inputs(sent))
        results: list[Tensor] = []
        hidden = made.states
        if len(sampling):
            masks = self._masks.finish()
            all_sample = len(sampling) == len(rows) == shape.ends[-1]
            if made.chosen is not None and all_sample and masks is None and plan.greedy:
                results.append(made.chosen[: len(rows)])
            else:
                last = hidden[: len(rows)] if all_sample else hidden[sent[last_tokens]]
                lora = None if head_plan is None else self._batch.adapters.batch(sent, head_plan)
                logits = last if is_logits else self._model.logits(last, lora=lora)
                chosen, logprobs = self._sampler.sample(logits, plan.finish(sent, masks))
                self._batch.write_sampled(sent[write_places], chosen)
                results += [chosen, *(logprobs or ())]
        if shares:
            following = self._batch.tokens.view(-1)[sent[draft.first] + 1].long()
            results += prompt_tensors(self._model, hidden, following, shares, self._batch.adapters)
        num_top = tuple(rows[i].request.sampling.logprobs for i in sampling)
        step = PendingStep(Asked(num_top=num_top, shares=tuple(shares)), results)
        self._masks.launched(step)
        return step

    def _forward(self, bucket: Bucket, inputs: list[Tensor]) -> StepResult:
        """What a graph of this bucket holds; its states have places of their own."""
        hidden, batch = self._hidden_of(inputs, self._batch.bounds(bucket))
        if not bucket.decodes:
            return StepResult(self._hidden[: bucket.num_tokens].copy_(hidden))
        out = self._logits[: bucket.num_rows]
        logits = self._model.logits(hidden, out=out, lora=batch.lora)
        if not self._draws_itself:
            return StepResult(logits)
        # Also for rows that the sampler draws anew: so greedy steps need nothing but the graph.
        chosen = draw(logits)
        self._batch.write_sampled(inputs[WRITE_PLACES], chosen)
        return StepResult(logits, chosen)

    def _hidden_of(
        self, inputs: list[Tensor], bounds: tuple[int, int]
    ) -> tuple[Tensor, ForwardBatch]:
        batch = self._batch.forward_batch(inputs, bounds, self.pool, self._model.windows)
        return self._model.forward(self._batch.tokens.view(-1)[inputs[0]], batch), batch


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
