"""Whole sentences in batches: each is read from a fresh state to its end in one chunk."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from hiddenstate_models.data.lanes import Chunk, Documents
from hiddenstate_models.errors import DataError

PADDING = -1
"""The token after a sentence's end."""

_BATCHES_SORTED = 50
"""Sentences of so many batches are sorted by length together, so that batches need little padding."""


class Sentences:
    """Iterates over an epoch's batches of `lanes` sentences; shuffled by (seed, epoch) when a seed is given.

    Without a seed batch i holds the sentences from the (i * lanes)-th on, in their order.
    """

    def __init__(self, documents: Documents, *, lanes: int, ignored: int, seed: int | None = None) -> None:
        """documents: tokens [N] and targets [N] of each sentence; `ignored` pads the targets."""
        if not documents:
            raise DataError("the data holds no sentence")
        self._documents = documents
        self._lanes = lanes
        self.padding = float(ignored)
        """What a target holds where no loss is counted."""
        self._seed = seed

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch (padding left out)."""
        return sum(len(inputs) for inputs, _ in self._documents)

    def chunks_per_epoch(self, _epoch: int) -> int:
        """How many batches an epoch has."""
        return -(-len(self._documents) // self._lanes)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Chunk]:
        """The batches of one epoch from the `skip`-th on; the same arguments always give the same batches."""
        for chosen in self._batches(epoch)[skip:]:
            yield self._batch(chosen)

    def _batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        count = len(self._documents)
        cuts = range(self._lanes, count, self._lanes)
        if self._seed is None:
            return np.split(np.arange(count), cuts)
        generator = np.random.default_rng((self._seed, epoch))
        order = generator.permutation(count)
        lengths = np.array([len(inputs) for inputs, _ in self._documents])
        together = _BATCHES_SORTED * self._lanes
        pieces = [order[start : start + together] for start in range(0, count, together)]
        order = np.concatenate([piece[np.argsort(lengths[piece], kind="stable")] for piece in pieces])
        batches = np.split(order, cuts)
        return [batches[i] for i in generator.permutation(len(batches))]

    def _batch(self, chosen: npt.NDArray[np.int64]) -> Chunk:
        documents = [self._documents[i] for i in chosen]
        shape = (max(len(inputs) for inputs, _ in documents), self._lanes)
        tokens = np.full(shape, PADDING, np.int64)
        targets = np.full(shape, self.padding, np.int64)
        for lane, (inputs, expected) in enumerate(documents):
            tokens[: len(inputs), lane] = inputs
            targets[: len(inputs), lane] = expected
        return Chunk(tokens, targets, np.ones(self._lanes, bool))
