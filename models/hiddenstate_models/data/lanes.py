"""Documents or series as contiguous lanes for truncated back-propagation through time.

Each of B lanes reads its own documents one after the other, T steps at a time, so that the state after one chunk is
the state before the next. A document's end pads the rest of its lane's chunk, and the next one starts with the next
chunk from a fresh state: no state ever crosses from one document to another.
"""

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hiddenstate_models.errors import DataError

Documents = Sequence[tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]]
"""Inputs [N, ...] and targets [N, ...] of each document or series."""


class Chunk(NamedTuple):
    """T steps of B lanes."""

    inputs: npt.NDArray[np.generic]
    """[T, B, ...]"""
    targets: npt.NDArray[np.generic]
    """[T, B, ...], padded with what the loss ignores."""
    starts: npt.NDArray[np.bool_]
    """[B]: lanes that begin a document here, from a fresh state."""


class Lanes:
    """Iterates over an epoch's chunks; the order of documents is shuffled by (seed, epoch) when a seed is given.

    Documents go to whichever lane is the emptiest, longest first, so that lanes end together; then each lane's own
    order is shuffled. A document longer than a lane's fair share is cut, so that one book fills all lanes, unless
    documents are to stay `whole`, as scores want them.
    """

    def __init__(
        self,
        documents: Documents,
        *,
        lanes: int,
        steps: int,
        padding: float,
        seed: int | None = None,
        whole: bool = False,
    ) -> None:
        total = sum(len(inputs) for inputs, _ in documents)
        if not total:
            raise DataError("the data holds nothing to predict: every document has less than two observations")
        share = total if whole else -(-total // lanes)
        self._documents = [
            (inputs[start : start + share], targets[start : start + share])
            for inputs, targets in documents
            for start in range(0, len(inputs), share)
        ]
        self._steps = steps
        self._padding = padding
        self._seed = seed
        self._lanes = lanes
        self._chunks_of = [-(-len(inputs) // steps) for inputs, _ in self._documents]

    @property
    def steps_per_epoch(self) -> int:
        """Steps that count towards the loss in an epoch, over all lanes (padding left out)."""
        return sum(len(inputs) for inputs, _ in self._documents)

    def chunks_per_epoch(self, epoch: int) -> int:
        """How many chunks `epoch` yields."""
        return max(sum(self._chunks_of[i] for i in lane) for lane in self._assign(epoch))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Chunk]:
        """The chunks of one epoch from the `skip`-th on; the same arguments always give the same chunks."""
        plan = [[(i, start) for i in lane for start in self._starts(i)] for lane in self._assign(epoch)]
        for position in range(skip, max(map(len, plan))):
            yield self._chunk([lane[position] if position < len(lane) else None for lane in plan])

    def _starts(self, document: int) -> range:
        return range(0, len(self._documents[document][0]), self._steps)

    def _assign(self, epoch: int) -> list[list[int]]:
        order = np.arange(len(self._documents))
        generator = None if self._seed is None else np.random.default_rng((self._seed, epoch))
        if generator is not None:
            generator.shuffle(order)
        lengths = np.array(self._chunks_of)[order]
        lanes: list[list[int]] = [[] for _ in range(self._lanes)]
        loads = [(0, lane) for lane in range(self._lanes)]
        for i in order[np.argsort(-lengths, kind="stable")]:
            load, lane = heapq.heappop(loads)
            lanes[lane].append(int(i))
            heapq.heappush(loads, (load + self._chunks_of[i], lane))
        if generator is not None:
            for assigned in lanes:
                generator.shuffle(assigned)
        return lanes

    def _chunk(self, places: Sequence[tuple[int, int] | None]) -> Chunk:
        first_inputs, first_targets = self._documents[0]
        shape = (self._steps, self._lanes)
        inputs = np.zeros((*shape, *first_inputs.shape[1:]), first_inputs.dtype)
        targets = np.full((*shape, *first_targets.shape[1:]), self._padding, first_targets.dtype)
        starts = np.ones(self._lanes, bool)
        for lane, place in enumerate(places):
            if place is None:
                continue
            document, start = place
            source, expected = self._documents[document]
            piece = slice(start, start + self._steps)
            length = len(source[piece])
            inputs[:length, lane] = source[piece]
            targets[:length, lane] = expected[piece]
            starts[lane] = start == 0
        return Chunk(inputs, targets, starts)
