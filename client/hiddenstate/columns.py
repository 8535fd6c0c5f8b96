"""Predictions as columns: one row an answer, as they cross the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiddenstate_proto import hiddenstate_pb2 as pb

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """Answers to n observations of one kind of model; the other kinds' columns are empty, [n, 0]."""

    steps: Array
    """uint64 [n]: observations in the state behind each prediction."""
    surprises: Array
    """float32 [n]: -log p of the observation under the prediction before it, in nats."""
    top_tokens: Array
    """int32 [n, k]: the most probable next tokens, best first."""
    top_probabilities: Array
    """float32 [n, k]."""
    locations: Array
    """float64 [n, horizon * targets]."""
    scales: Array
    """float64 [n, horizon * targets]."""
    degrees_of_freedom: Array
    """float32 [n, horizon * targets]; infinite for a Gaussian."""
    probabilities: Array
    """float32 [n, labels]: of each label; or float32 [n, notes]: that each note sounds in the next frame."""

    def __len__(self) -> int:
        return len(self.steps)

    def take(self, rows: Array | slice) -> Columns:
        """These rows."""
        return Columns(*(getattr(self, name)[rows] for name in _NAMES))

    @staticmethod
    def concatenate(parts: Sequence[Columns]) -> Columns:
        """The parts, one below the other."""
        if len(parts) == 1:
            return parts[0]
        return Columns(*(np.concatenate([getattr(part, name) for part in parts]) for name in _NAMES))

    @staticmethod
    def missing(like: Columns | None, n: int) -> Columns:
        """`n` rows of nothing (NaN; token -1), as wide as `like`."""

        def rows(name: str, fill: float, dtype: str, flat: bool = False) -> Array:
            width = 0 if like is None or flat else getattr(like, name).shape[1]
            return np.full(n if flat else (n, width), fill, dtype)

        return Columns(
            rows("steps", 0, "u8", flat=True),
            rows("surprises", np.nan, "f4", flat=True),
            rows("top_tokens", -1, "i4"),
            rows("top_probabilities", np.nan, "f4"),
            rows("locations", np.nan, "f8"),
            rows("scales", np.nan, "f8"),
            rows("degrees_of_freedom", np.nan, "f4"),
            rows("probabilities", np.nan, "f4"),
        )

    @staticmethod
    def parse(message: pb.Predictions) -> tuple[Array, Columns]:
        """Handles uint32 [n] and their answers."""
        handles = np.frombuffer(message.handles, "<u4")
        n = len(handles)

        def table(packed: bytes, dtype: str) -> Array:
            flat = np.frombuffer(packed, dtype)
            return flat.reshape(n, flat.size // n if n else 0)

        surprises = np.frombuffer(message.surprises, "<f4")
        return handles, Columns(
            np.frombuffer(message.steps, "<u8"),
            surprises if surprises.size == n else np.full(n, np.nan, "f4"),
            table(message.top_tokens, "<i4"),
            table(message.top_probabilities, "<f4"),
            table(message.locations, "<f8"),
            table(message.scales, "<f8"),
            table(message.degrees_of_freedom, "<f4"),
            table(message.probabilities, "<f4"),
        )


_NAMES = tuple(field.name for field in fields(Columns))
