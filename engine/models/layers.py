"""The blocks that decoders are made of, written once; each model file picks and configures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import embedding

from baton.engine.model_info import ModelSpec
from baton.engine.models.forward_batch import ForwardBatch
from baton.engine.models.weights import Dim, Weights
from baton.kernels.fused_linear import (
    Norm,
    add_linear,
    fused_linear,
    normed_linear,
    split_counts,
)
from baton.kernels.lora import LoraBatch, lora_embed, lora_linear
from baton.kernels.paged_attention import paged_attention
from baton.kernels.rms_norm import rms_norm
from baton.kernels.rotary_cache import rotary_cache


class ColumnLinear:
    """y = x W^T + b; W [out, in] may merge several checkpoint matrices, of `rows` rows each.

    Of each the rows (the columns of W^T) may be this rank's part: so is y then.
    """

    def __init__(
        self, weights: Weights, names: Sequence[str], rows: Sequence[Dim], width: int, *, bias: bool
    ) -> None:
        self.weight = weights.merged([f"{name}.weight" for name in names], rows, width)
        self.bias = weights.merged([f"{name}.bias" for name in names], rows) if bias else None
        self.counts = split_counts(self.weight)
        self.target = weights.target(names, rows, width)

    def after_norm(
        self, x: Tensor, norm: Norm, lora: LoraBatch | None, *, swiglu: bool = False
    ) -> Tensor:
        """y of the normed x, halved by SwiGLU if asked."""
        if lora is None:
            return normed_linear(x, norm, self.weight, self.bias, swiglu=swiglu, counts=self.counts)
        x = rms_norm(x, norm.weight, norm.eps)
        return lora_linear(
            *(x, self.weight, self.bias, self.target.weights(), lora),
            swiglu=swiglu,
            counts=self.counts,
        )


class RowLinear:
    """y = x W^T + b, where x and W's columns (the rows of W^T) are this rank's parts; y is whole.

    The ranks' products are added up; rank 0 brings the bias, and what y is added to.
    """

    def __init__(self, weights: Weights, name: str, height: int, width: Dim, *, bias: bool) -> None:
        self.group = weights.group
        self.weight = weights.tensor(f"{name}.weight", height, width)
        self.bias = weights.tensor(f"{name}.bias", height) if bias else None
        if self.group.shards.rank > 0:
            self.bias = None
        self.counts = split_counts(self.weight)
        self.target = weights.target([name], [height], width)

    def add_to(self, total: Tensor, x: Tensor, lora: LoraBatch | None) -> Tensor:
        """total + y; in total's memory, or in new one and total's no longer holds it."""
        whole = self.group.shards.rank == 0
        # What an adapter adds is a product over the same columns: the ranks' parts add up too.
        if lora is not None:
            made = lora_linear(
                *(x, self.weight, self.bias, self.target.weights(), lora),
                add_to=total if whole else None,
                counts=self.counts,
            )
        elif whole:
            made = add_linear(total, x, self.weight, self.bias, counts=self.counts)
        else:
            made = fused_linear(x, self.weight, self.bias, counts=self.counts)
        return self.group.all_reduce(made)


class Attention:
    """Grouped-query attention over the paged pool, with rotary positions; this rank's heads of it.

    qk_norm: each query and key head is RMS-normalised before rotation (Qwen3).
    sliding_window: how many positions a token sees, its own counted; None: all before it.
    """

    def __init__(
        self,
        weights: Weights,
        spec: ModelSpec,
        layer: int,
        *,
        qkv_bias: bool,
        o_bias: bool,
        qk_norm: bool = False,
    ) -> None:
        prefix = f"model.layers.{layer}.self_attn"
        self.layer = layer
        self.spec = spec
        self.scale = spec.head_dim**-0.5
        self.sliding_window = spec.sliding_windows[layer]
        shards = weights.group.shards
        heads, kv_heads = shards.split(spec.num_heads), shards.kv_heads(spec.num_kv_heads)
        self.heads = (heads.count, kv_heads.count, kv_heads.count)
        queries, keys = heads.times(spec.head_dim), kv_heads.times(spec.head_dim)
        self.qkv = ColumnLinear(
            weights,
            [f"{prefix}.q_proj", f"{prefix}.k_proj", f"{prefix}.v_proj"],
            [queries, keys, keys],
            spec.hidden_size,
            bias=qkv_bias,
        )
        self.out = RowLinear(weights, f"{prefix}.o_proj", spec.hidden_size, queries, bias=o_bias)
        self.q_norm = weights.tensor(f"{prefix}.q_norm.weight", spec.head_dim) if qk_norm else None
        self.k_norm = weights.tensor(f"{prefix}.k_norm.weight", spec.head_dim) if qk_norm else None

    def __call__(self, x: Tensor, norm: Norm, batch: ForwardBatch, cos_sin: Tensor) -> Tensor:
        """Residual stream [num_tokens, hidden] in and out. The tokens' KV goes into the pool."""
        spec = self.spec
        kv = batch.kv_layers[self.layer]
        kv_scale = batch.kv_scales[self.layer] if batch.kv_scales else None
        made = self.qkv.after_norm(x, norm, batch.lora)
        heads = made.view(x.shape[0], -1, spec.head_dim)
        q, k, v = heads.split_with_sizes(self.heads, 1)
        q = rotary_cache(
            q,
            k,
            v,
            kv,
            batch.positions,
            batch.slot_mapping,
            cos_sin,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            eps=spec.rms_norm_eps,
            kv_scale=kv_scale,
        )
        mixed = paged_attention(
            q,
            kv,
            batch.query_start,
            batch.context_lens,
            batch.block_tables,
            scale=self.scale,
            max_query_len=batch.max_query_len,
            max_context_len=batch.max_context_len,
            sliding_window=self.sliding_window,
            kv_scale=kv_scale,
            plan=batch.plans.get(self.sliding_window),
        )
        return self.out.add_to(x, mixed.reshape(x.shape[0], -1), batch.lora)


class GatedMLP:
    """down(silu(gate(x)) * up(x)), each rank some of the columns between."""

    def __init__(
        self, weights: Weights, spec: ModelSpec, layer: int, *, bias: bool = False
    ) -> None:
        prefix = f"model.layers.{layer}.mlp"
        columns = weights.group.shards.split(spec.intermediate_size)
        self.gate_up = ColumnLinear(
            weights,
            [f"{prefix}.gate_proj", f"{prefix}.up_proj"],
            [columns, columns],
            spec.hidden_size,
            bias=bias,
        )
        self.down = RowLinear(weights, f"{prefix}.down_proj", spec.hidden_size, columns, bias=bias)

    def __call__(self, x: Tensor, norm: Norm, lora: LoraBatch | None) -> Tensor:
        """Residual stream [num_tokens, hidden] in and out."""
        made = self.gate_up.after_norm(x, norm, lora, swiglu=True)
        return self.down.add_to(x, made, lora)


class DecoderLayer:
    """Pre-norm attention and MLP, each adding to the residual stream."""

    def __init__(
        self, weights: Weights, spec: ModelSpec, layer: int, attention: Attention, mlp: GatedMLP
    ) -> None:
        prefix = f"model.layers.{layer}"
        self.attention = attention
        self.mlp = mlp
        width, eps = spec.hidden_size, spec.rms_norm_eps
        self.input_norm = Norm(weights.tensor(f"{prefix}.input_layernorm.weight", width), eps)
        self.mlp_norm = Norm(
            weights.tensor(f"{prefix}.post_attention_layernorm.weight", width), eps
        )

    def __call__(self, x: Tensor, batch: ForwardBatch, cos_sin: Tensor) -> Tensor:
        """Residual stream [num_tokens, hidden] in and out; x's memory is written."""
        x = self.attention(x, self.input_norm, batch, cos_sin)
        return self.mlp(x, self.mlp_norm, batch.lora)


class CausalLM:
    """Embedding, decoder layers, final norm and output head.

    The vocabulary of embedding and head is split over the ranks, padded to equal parts.
    """

    def __init__(
        self, weights: Weights, spec: ModelSpec, layers: Sequence[DecoderLayer], cos_sin: Tensor
    ) -> None:
        """`cos_sin` is float32 [max positions, head_dim]: cosines in the first half, then sines."""
        self.spec = spec
        self.layers = tuple(layers)
        self.windows = frozenset(spec.sliding_windows)
        self.cos_sin = cos_sin
        self.group = weights.group
        self.vocab = weights.group.shards.padded(spec.vocab_size)
        shape = (self.vocab, spec.hidden_size)
        self.embed = weights.tensor("model.embed_tokens.weight", *shape)
        norm = weights.tensor("model.norm.weight", spec.hidden_size)
        self.norm = Norm(norm, spec.rms_norm_eps)
        if spec.tie_word_embeddings:
            weights.alias("lm_head.weight", "model.embed_tokens.weight")
            self.head = self.embed
        else:
            self.head = weights.tensor("lm_head.weight", *shape)
        # Tied or not, an adapter changes the two apart. All of an embedding's A is on every rank.
        self.embed_target = weights.target(
            ["model.embed_tokens"], [spec.hidden_size], spec.vocab_size
        )
        self.head_target = weights.target(["lm_head"], [self.vocab], spec.hidden_size)

    def forward(self, token_ids: Tensor, batch: ForwardBatch) -> Tensor:
        """token_ids [num_tokens] to hidden states [num_tokens, hidden], before the final norm."""
        x = self._embedded(token_ids)
        if batch.lora is not None:
            x = lora_embed(x, token_ids, self.embed_target.weights(), batch.lora)
        for layer in self.layers:
            x = layer(x, batch, self.cos_sin)
        return x

    def logits(
        self, hidden: Tensor, out: Tensor | None = None, lora: LoraBatch | None = None
    ) -> Tensor:
        """Hidden states [n, hidden] of chosen tokens to logits [n, vocab], dtype of the model.

        out: contiguous, in that shape, to be written and returned. lora: of these tokens.
        """
        whole = self.vocab.count == self.spec.vocab_size
        into = out if whole else None
        if lora is None:
            made = normed_linear(hidden, self.norm, self.head, out=into)
        else:
            x = rms_norm(hidden, self.norm.weight, self.norm.eps)
            made = lora_linear(x, self.head, None, self.head_target.weights(), lora, out=into)
        if whole:
            return made
        logits = self.group.gather_columns(made)[:, : self.spec.vocab_size]
        return logits if out is None else out.copy_(logits)

    def _embedded(self, token_ids: Tensor) -> Tensor:
        if self.vocab.count == self.vocab.full:
            return embedding(token_ids, self.embed)
        here = token_ids - self.vocab.start
        others = (here < 0) | (here >= self.vocab.count)
        x = embedding(here.masked_fill(others, 0), self.embed)
        return self.group.all_reduce(x.masked_fill_(others[:, None], 0.0))
