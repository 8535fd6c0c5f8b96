"""Documents or series as contiguous lanes for truncated back-propagation through time.

Each of B lanes reads its own documents one after the other, T steps at a time, so that the state after one chunk is
the state before the next. A document's end pads the rest of its lane's chunk, and the next one starts with the next
chunk from a fresh state: no state ever crosses from one document to another.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hiddenstate_models.errors import DataError

Documents = Sequence[tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]]
"""Inputs [N, ...] and targets [N, ...] of each document or series."""


_USUAL, _SPREAD = 0.95, 1 / 14
"""Of varied lengths: how many are around the full length, not half of it; their deviation (5 of 70 in the paper)."""


class Chunk(NamedTuple):
    """T steps of B lanes."""

    inputs: npt.NDArray[np.generic]
    """[T, B, ...]"""
    targets: npt.NDArray[np.generic]
    """[T, B, ...], padded with what the loss ignores."""
    starts: npt.NDArray[np.bool_]
    """[B]: lanes that begin a document here, from a fresh state."""
    places: npt.NDArray[np.int64] | None = None
    """[S]: the steps that targets [S, B, ...] belong to, in order; None: every one."""


class Source(Protocol):
    """Where chunks come from: `Lanes`, or what draws them anew."""

    @property
    def padding(self) -> float:
        """What a target holds where no loss is counted."""
        ...

    def chunks_per_epoch(self, epoch: int, /) -> int:
        """How many chunks `epoch` yields."""
        ...

    def epoch(self, epoch: int, skip: int = 0, /) -> Iterator[Chunk]:
        """The chunks of one epoch from the `skip`-th on; the same arguments always give the same chunks."""
        ...


class Lanes:
    """Iterates over an epoch's chunks; the order of documents is shuffled by (seed, epoch) when a seed is given.

    Documents go to whichever lane is the emptiest, longest first, so that lanes end together; then each lane's own
    order is shuffled. A document longer than a lane's fair share is cut, so that one book fills all lanes, unless
    documents are to stay `whole`, as scores want them. Chunks that `vary` have about `steps` steps, now and then half
    as many, so that no step is always the last of its window (Merity et al., 2018).
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
        vary: bool = False,
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
        self.steps = steps
        self.padding = padding
        self._seed = seed
        self._vary = vary
        self._lanes = lanes
        self._chunks_of = [-(-len(inputs) // steps) for inputs, _ in self._documents]

    @property
    def steps_per_epoch(self) -> int:
        """Steps that count towards the loss in an epoch, over all lanes (padding left out)."""
        return sum(len(inputs) for inputs, _ in self._documents)

    def chunks_per_epoch(self, epoch: int) -> int:
        """How many chunks `epoch` yields."""
        return sum(1 for _ in self._plan(epoch))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Chunk]:
        """The chunks of one epoch from the `skip`-th on; the same arguments always give the same chunks."""
        for steps, places in itertools.islice(self._plan(epoch), skip, None):
            yield self._chunk(places, steps)

    def _plan(self, epoch: int) -> Iterator[tuple[int, list[tuple[int, int] | None]]]:
        """Every chunk's steps, and each lane's document and place in it; None: nothing left for the lane."""
        waiting = [deque(lane) for lane in self._assign(epoch)]
        starts = [0] * self._lanes
        for steps in self._lengths(epoch):
            if not any(waiting):
                return
            yield steps, [(lane[0], start) if lane else None for lane, start in zip(waiting, starts, strict=True)]
            for i, lane in enumerate(waiting):
                starts[i] += steps
                if lane and starts[i] >= len(self._documents[lane[0]][0]):
                    lane.popleft()
                    starts[i] = 0

    def _lengths(self, epoch: int) -> Iterator[int]:
        """Steps of each chunk, without an end."""
        if not self._vary:
            yield from itertools.repeat(self.steps)
        generator = np.random.default_rng((self._seed or 0, epoch, self.steps))
        while True:
            mean = self.steps * (1.0 if generator.random() < _USUAL else 0.5)
            yield max(round(generator.normal(mean, _SPREAD * self.steps)), 1)

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

    def _chunk(self, places: Sequence[tuple[int, int] | None], steps: int) -> Chunk:
        first_inputs, first_targets = self._documents[0]
        shape = (steps, self._lanes)
        inputs = np.zeros((*shape, *first_inputs.shape[1:]), first_inputs.dtype)
        targets = np.full((*shape, *first_targets.shape[1:]), self.padding, first_targets.dtype)
        starts = np.ones(self._lanes, bool)
        for lane, place in enumerate(places):
            if place is None:
                continue
            document, start = place
            source, expected = self._documents[document]
            piece = slice(start, start + steps)
            length = len(source[piece])
            inputs[:length, lane] = source[piece]
            targets[:length, lane] = expected[piece]
            starts[lane] = start == 0
        return Chunk(inputs, targets, starts)
