"""Prompts that workers were sent and have not computed yet: they will hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Held(NamedTuple):
    """Of a prompt, these workers hold so much of the beginning and no more, in blocks here and in
    tokens where several sizes of blocks meet. workers: a set of bits; `Columns.bits` say whose.
    """

    workers: int
    length: int


class Promises:
    """What will be held, by every `stride`th block of each prompt: enough to keep those together
    that share a beginning, at a small part of the cost of an index. Workers are bits.
    """

    def __init__(self, stride: int) -> None:
        self._stride = stride
        self._promised: dict[object, list[tuple[int, Sequence[bytes]]]] = {}
        # Who was promised each of these blocks, once for every prompt.
        self._marks: dict[bytes, list[int]] = {}

    def add(self, key: object, workers: int, hashes: Sequence[bytes]) -> None:
        """Beside what the same key promised before, which is kept."""
        self._put(key, workers, hashes[self._stride - 1 :: self._stride])

    def _put(self, key: object, workers: int, marks: Sequence[bytes]) -> None:
        self._promised.setdefault(key, []).append((workers, marks))
        for mark in marks:
            self._marks.setdefault(mark, []).append(workers)

    def remove(self, key: object) -> None:
        """Unknown keys are ignored."""
        for workers, marks in self._promised.pop(key, ()):
            for mark in marks:
                left = self._marks[mark]
                left.remove(workers)
                if not left:
                    del self._marks[mark]

    def forget(self, worker: int) -> None:
        """The worker of this bit is gone."""
        for key, promised in list(self._promised.items()):
            if any(workers & worker for workers, _ in promised):
                self.remove(key)
                for workers, marks in promised:
                    if left := workers & ~worker:
                        self._put(key, left, marks)

    def with_promised(self, held: list[Held], hashes: Sequence[bytes]) -> list[Held]:
        """What is held together with what will be, longest first."""
        stride = self._stride
        if len(hashes) < stride or hashes[stride - 1] not in self._marks:
            return held
        by_length = {length: workers for workers, length in held}
        for end in range(stride, len(hashes) + 1, stride):
            promised = self._marks.get(hashes[end - 1])
            if promised is None:
                break
            for workers in promised:
                by_length[end] = by_length.get(end, 0) | workers
        merged, taken = [], 0
        for length in sorted(by_length, reverse=True):
            if workers := by_length[length] & ~taken:
                merged.append(Held(workers, length))
                taken |= workers
        return merged
