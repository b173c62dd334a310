"""Batches made by worker processes: one process cannot feed a GPU."""

import multiprocessing as mp
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models.train.batching import Mixture
from models.train.model import Batch, Group
from tokenizers import Tokenizer

BATCHES_AHEAD = 4


def pack(batch: Batch) -> bytes:
    """Turn a batch into bytes: small tensors by themselves would each cost a file descriptor."""
    arrays = [batch.tokens, batch.positions, batch.target_rows, batch.targets]
    groups = [(g.index.numpy().astype(np.int32), g.rows.numpy()) for g in batch.groups]
    return pickle.dumps(([a.numpy() for a in arrays], groups), protocol=5)


def unpack(data: bytes) -> Batch:
    """Read what `pack` wrote."""
    arrays, groups = pickle.loads(data)
    tokens, positions, rows, targets = (torch.from_numpy(a) for a in arrays)
    made = [Group(torch.from_numpy(i).long(), torch.from_numpy(r)) for i, r in groups]
    return Batch(tokens, positions, made, rows, targets)


def _produce(
    queue: Any, tokenizer: str, shares: Mapping[str, tuple[float, float]], seed: int, size: int
) -> None:
    torch.set_num_threads(1)
    mixture = Mixture(Tokenizer.from_file(tokenizer), shares, seed=seed)
    for batch in mixture.batches(size):
        queue.put(pack(batch))


def prefetched(
    tokenizer: Path,
    shares: Mapping[str, tuple[float, float]],
    *,
    num_tokens: int,
    num_workers: int,
    seed: int,
) -> Iterator[Batch]:
    """Yield batches from `num_workers` processes, which end with this one."""
    context = mp.get_context("spawn")
    queue = context.Queue(maxsize=BATCHES_AHEAD * num_workers)
    for worker in range(num_workers):
        args = (queue, str(tokenizer), shares, seed * 1000 + worker, num_tokens)
        context.Process(target=_produce, args=args, daemon=True).start()
    while True:
        yield unpack(queue.get())
