"""Draw samples by token share and lay them out as ragged batches."""

import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from models.train.model import Batch, Group
from models.train.render import render
from models.train.samples import Sample, draw
from models.train.tasks import MAKERS
from tokenizers import Tokenizer
from torch import Tensor


class Document(NamedTuple):
    """A tokenized conversation; tokens from `num_prompt_tokens` on are to be learned."""

    task: str
    tokens: list[int]
    num_prompt_tokens: int


def encode(tokenizer: Tokenizer, samples: list[Sample], thinking: list[bool]) -> list[Document]:
    """Render and tokenize samples."""
    texts = [render(s, thinking=t) for s, t in zip(samples, thinking, strict=True)]
    encoded = tokenizer.encode_batch([text for pair in texts for text in pair])
    documents = []
    for sample, prompt, target in zip(samples, encoded[::2], encoded[1::2], strict=True):
        documents.append(Document(sample.task, prompt.ids + target.ids, len(prompt.ids)))
    return documents


def _group(documents: list[Document], first_row: int) -> Group:
    longest = max(len(d.tokens) for d in documents)
    last_row = first_row + sum(len(d.tokens) for d in documents) - 1
    places = torch.arange(longest)
    index = torch.empty(len(documents), longest, dtype=torch.long)
    rows, row = [], first_row
    for i, document in enumerate(documents):
        length = len(document.tokens)
        # Padding reads on into the next documents, which causality hides: were it one row for
        # all, their gradients (zeros) would queue up to be added to that row.
        index[i] = (places + row).clamp_(max=last_row)
        rows.append(places[:length] + i * longest)
        row += length
    return Group(index, torch.cat(rows))


def _split_by_length(documents: list[Document]) -> list[list[Document]]:
    groups: list[list[Document]] = []
    for document in sorted(documents, key=lambda d: len(d.tokens)):
        if not groups or len(document.tokens) > 1.3 * len(groups[-1][0].tokens) + 4:
            groups.append([])
        groups[-1].append(document)
    return groups


def collate(documents: list[Document]) -> Batch:
    """Lay documents end to end, those of like length together."""
    grouped = _split_by_length(documents)
    tokens: list[int] = []
    positions: list[Tensor] = []
    target_rows: list[Tensor] = []
    targets: list[int] = []
    groups = []
    for members in grouped:
        groups.append(_group(members, len(tokens)))
        for _, ids, start in members:
            # the token at row i is followed by the one at row i + 1
            target_rows.append(torch.arange(len(tokens) + start - 1, len(tokens) + len(ids) - 1))
            targets += ids[start:]
            tokens += ids
            positions.append(torch.arange(len(ids)))
    return Batch(
        torch.tensor(tokens),
        torch.cat(positions),
        groups,
        torch.cat(target_rows),
        torch.tensor(targets),
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch."""
    groups = [Group(g.index.to(device), g.rows.to(device)) for g in batch.groups]
    tokens, positions, _, rows, targets = batch
    return Batch(
        tokens.to(device), positions.to(device), groups, rows.to(device), targets.to(device)
    )


class Mixture:
    """An endless supply of training documents in given shares of the samples.

    A share is a pair: the weight of the task, and the part of its samples that think.
    """

    def __init__(
        self, tokenizer: Tokenizer, shares: Mapping[str, tuple[float, float]], seed: int
    ) -> None:
        self.shares = dict(shares)
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)

    def draw(self, count: int) -> list[Document]:
        """Return that many documents."""
        tasks = list(self.shares)
        weights = [self.shares[task][0] for task in tasks]
        chosen = self._rng.choices(tasks, weights, k=count)
        samples = [draw(MAKERS[task], self._rng, held_out=False) for task in chosen]
        thinking = [self._rng.random() < self.shares[task][1] for task in chosen]
        return encode(self._tokenizer, samples, thinking)

    def batches(self, num_tokens: int) -> Iterator[Batch]:
        """Yield batches of at most `num_tokens` tokens, forever."""
        queue: list[Document] = []
        while True:
            taken: list[Document] = []
            total = 0
            while True:
                if not queue:
                    queue = self.draw(256)
                if taken and total + len(queue[-1].tokens) > num_tokens:
                    break
                taken.append(queue.pop())
                total += len(taken[-1].tokens)
            yield collate(taken)
