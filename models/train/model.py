"""A compact Qwen3 for training: ragged batches, logits only where a token is to be learned."""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The sizes of a model; names as in a Hugging Face `config.json`."""

    vocab_size: int = 1024
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 8192

    def to_dict(self) -> dict[str, int | float]:
        """Return the sizes by name."""
        return asdict(self)


class Group(NamedTuple):
    """Documents of about one length, attended to together.

    `index` [num_docs, length] gives each place's row among the batch's tokens (any where padded);
    `rows` [num_tokens] gives each token's place in the padded block.
    """

    index: Tensor
    rows: Tensor


class Batch(NamedTuple):
    """Documents laid end to end, group by group, without padding."""

    tokens: Tensor
    positions: Tensor
    groups: list[Group]
    target_rows: Tensor
    targets: Tensor


def rope_tables(config: ModelConfig, length: int) -> tuple[Tensor, Tensor]:
    """Return the cosine and sine tables, each [length, 1, head_dim]."""
    inverse = config.rope_theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
    angles = torch.arange(length)[:, None] * torch.cat((inverse, inverse))[None]
    return angles.cos()[:, None], angles.sin()[:, None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, groups: list[Group]) -> Tensor:
        """Attend within each document; x is [num_tokens, hidden]."""
        num_tokens = x.shape[0]
        q = self.q_norm(self.q_proj(x).view(num_tokens, self.num_heads, self.head_dim))
        k = self.k_norm(self.k_proj(x).view(num_tokens, self.num_kv_heads, self.head_dim))
        v = self.v_proj(x).view(num_tokens, self.num_kv_heads, self.head_dim)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        outputs = []
        for group in groups:
            # [num_docs, heads, length, head_dim]; padding comes last, so causality hides it
            # (index_select: the backward pass of plain indexing sorts, which is slow on a GPU)
            shape = (*group.index.shape, -1, self.head_dim)
            rows = group.index.flatten()
            queries, keys, values = (
                t.index_select(0, rows).view(shape).transpose(1, 2) for t in (q, k, v)
            )
            mixed = F.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, enable_gqa=True
            )
            outputs.append(mixed.transpose(1, 2).flatten(0, 1).index_select(0, group.rows))
        return self.o_proj(torch.cat(outputs).flatten(1))


class MLP(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token; x is [num_tokens, hidden]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward, each on a normalised residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, groups: list[Group]) -> Tensor:
        """Apply the first half of the layer."""
        return x + self.self_attn(self.input_layernorm(x), cos, sin, groups)

    def feed(self, x: Tensor) -> Tensor:
        """Apply the second half of the layer."""
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3(nn.Module):
    """The decoder; parameter names are those of the Hugging Face model less its prefix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        cos, sin = rope_tables(config, config.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._init_weights()

    def _init_weights(self) -> None:
        depth_scale = (2 * self.config.num_hidden_layers) ** -0.5
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                std = 0.02 if "embed" in name else weight.shape[1] ** -0.5
                is_output = "o_proj" in name or "down_proj" in name
                nn.init.normal_(weight, std=std * (depth_scale if is_output else 1.0))

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits [num_targets, vocab] at the batch's target rows."""
        cos, sin = self.cos[batch.positions], self.sin[batch.positions]
        x = self.embed_tokens(batch.tokens)
        for layer in self.layers[:-1]:
            x = layer.feed(layer.attend(x, cos, sin, batch.groups))
        last = self.layers[-1]
        x = last.attend(x, cos, sin, batch.groups)[batch.target_rows]
        return F.linear(self.norm(last.feed(x)), self.embed_tokens.weight)
