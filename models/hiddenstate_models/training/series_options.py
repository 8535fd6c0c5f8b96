"""How tasks that read series of values read them: flags, files, sessions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hiddenstate_models.cells import Cell
from hiddenstate_models.data import sources
from hiddenstate_models.data.series import Series, read_series
from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.training.cell_options import CellFlags, with_default
from hiddenstate_models.training.options import TrainingOptions, option

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SeriesFlags(CellFlags):
    """Settings of a run on series: how they are read, the network and its distribution."""

    columns: str = option(
        "", "Columns to read, names or patterns like '*_MW', comma-separated; empty: all numeric ones."
    )
    layout: Literal["auto", "columns", "joint", "rows"] = option(
        "auto",
        "A series is each column, a file's columns jointly, or each row; auto: rows of wide tables without times.",
    )
    targets: str = option("", "Columns to predict in joint series, comma-separated; empty: all.")
    cell: Cell = with_default("cell", "gru")
    hidden: str = with_default("hidden", "64")
    distribution: Literal["student-t", "gaussian"] = option("student-t", "Distribution of what comes next.")
    session: int = option(4000, "Cut series into sessions of at most so many rows, each from a fresh state.")

    def __post_init__(self) -> None:
        if self.session < 2:
            raise ConfigurationError(f"session must be at least 2, not {self.session}")

    def series(self, columns: Sequence[str]) -> dict[str, Any]:
        """The fields of a network's configuration for series with these columns.

        Raises:
            ConfigurationError: a target is none of them.
        """
        targets = names(self.targets) or tuple(columns)
        unknown = [target for target in targets if target not in columns]
        if unknown:
            raise ConfigurationError(f"no column {unknown[0]!r} to predict; there are {', '.join(columns)}")
        return {
            **self.cells(),
            "columns": len(columns),
            "targets": tuple(columns.index(target) for target in targets),
            "distribution": self.distribution,
        }

    def columns_of(self, series: Series) -> tuple[str, ...]:
        """What the network's columns are called; series of one value each are of many kinds and share no name."""
        return series.columns if self.layout == "joint" else ("value",)

    def read(self, data: Sequence[str], valid: Sequence[str]) -> tuple[list[Series], list[Series]]:
        """Series to learn from, and of the files to validate on, which are never learnt from.

        Raises:
            DataError: there is nothing left to learn from.
        """
        held_out = sources.expand(valid)
        learnt_from = [source for source in sources.expand(data) if source not in held_out]
        if not learnt_from:
            raise DataError("every file to learn from is also one to validate on")
        columns = names(self.columns)
        training = read_series(learnt_from, columns=columns, layout=self.layout)
        return training, read_series(held_out, columns=columns, layout=self.layout)


def names(text: str) -> tuple[str, ...]:
    """Names from "a, b"."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def cut(series: Sequence[Floats], rows: int) -> list[Floats]:
    """Series as pieces of at most `rows`, of which those with two rows or more are kept."""
    pieces = [one[start : start + rows] for one in series for start in range(0, len(one), rows)]
    return [piece for piece in pieces if len(piece) > 1]


def require_full_precision(task: str, options: TrainingOptions) -> None:
    """Raises ConfigurationError for mixed precision, which would round the values that are read."""
    if options.precision != "32-true":
        raise ConfigurationError(f"{task} needs --precision 32-true: mixed precision would round the values it reads")
