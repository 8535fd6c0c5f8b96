"""`hiddenstate watch`: what a series does against what was expected of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from hiddenstate import Client, HiddenstateError, InvalidInput, Model, ValuePredictions
from hiddenstate.cli.console import Access, batches, err, exact_percent, fail, out, until_interrupted
from hiddenstate.cli.series import Reader, Row

Floats = NDArray[np.float64]
_BLANK = "–"


@dataclass(frozen=True)
class Expected:
    """What was expected of the values of some rows, each array [rows, series]."""

    mean: Floats
    lower: Floats
    upper: Floats
    low: Floats
    """Below it a value is an anomaly."""
    high: Floats
    """Above it a value is an anomaly."""


@dataclass
class Tally:
    """How one series went."""

    name: str
    values: int = 0
    missing: int = 0
    judged: int = 0
    inside: int = 0
    anomalies: int = 0
    error: float = 0.0
    persistence: float = 0.0
    surprise: float = 0.0
    last: float = math.nan

    def add(self, value: float, expected: tuple[float, float, float], anomaly: bool, surprise: float) -> None:
        """Counts one value, with the mean, lower and upper bound expected of it."""
        if math.isnan(value):
            self.missing += 1
            return
        self.values += 1
        mean, lower, upper = expected
        if not math.isnan(mean) and not math.isnan(self.last):
            self.judged += 1
            self.inside += lower <= value <= upper
            self.anomalies += anomaly
            self.error += abs(value - mean)
            self.persistence += abs(value - self.last)
            self.surprise += surprise
        self.last = value


class Source(Protocol):
    """Sessions that are fed rows float64 [n, series]; answers [n, series]."""

    def observe(self, values: Floats) -> ValuePredictions:
        """Predictions after each value."""


@dataclass
class Watcher:
    """Feeds rows, prints lines and keeps the score."""

    names: list[str]
    targets: list[int]
    source: Source
    level: float
    anomaly: float
    keep: bool
    """Keep everything for a plot."""
    tallies: list[Tally] = field(init=False)
    kept: list[tuple[list[str], Floats, Expected, NDArray[np.bool_]]] = field(default_factory=list)
    _next: Expected = field(init=False)
    _decimals: int = 0
    _largest: float = 0.0
    _width: int = 10

    def __post_init__(self) -> None:
        self.tallies = [Tally(self.names[target]) for target in self.targets]
        nothing = np.full((1, len(self.targets)), np.nan)
        self._next = Expected(nothing, nothing, nothing, nothing, nothing)

    def take(self, rows: list[Row]) -> None:
        """Observes rows and prints them."""
        values = np.array([row.values for row in rows])
        predictions = self.source.observe(values)
        shape = (len(rows), len(self.targets))
        after = self._expected(predictions, shape)
        # what was expected of a value is what was predicted after the one before it
        expected = Expected(*(np.concatenate([old, new[:-1]]) for old, new in _pairs(self._next, after)))
        self._next = Expected(*(new[-1:] for _, new in _pairs(self._next, after)))
        seen = values[:, self.targets]
        surprises = np.broadcast_to(predictions.surprise.reshape(len(rows), -1), shape)
        anomalies = (seen < expected.low) | (seen > expected.high)
        self._decimals = max(self._decimals, *(row.decimals for row in rows))
        self._largest = max(self._largest, float(np.nan_to_num(np.abs(seen)).max()))
        for i, row in enumerate(rows):
            for j in range(shape[1]):
                self._line(row.label, j, i, seen, expected, after, surprises, anomalies)
        sys.stdout.flush()
        if self.keep:
            self.kept.append(([row.label for row in rows], seen, expected, anomalies))

    def _expected(self, predictions: ValuePredictions, shape: tuple[int, int]) -> Expected:
        arrays = (predictions.mean, *predictions.interval(self.level), *predictions.interval(self.anomaly))
        return Expected(*(array.reshape(shape) for array in arrays))

    def _line(
        self,
        label: str,
        j: int,
        i: int,
        seen: Floats,
        expected: Expected,
        after: Expected,
        surprises: NDArray[Any],
        anomalies: NDArray[np.bool_],
    ) -> None:
        value, mean = float(seen[i, j]), float(expected.mean[i, j])
        lower, upper = float(expected.lower[i, j]), float(expected.upper[i, j])
        anomaly, surprise = bool(anomalies[i, j]), float(surprises[i, j])
        self.tallies[j].add(value, (mean, lower, upper), anomaly, surprise)
        interval = _BLANK if math.isnan(lower) else f"{self._number(lower)} … {self._number(upper)}"
        name = f"{self.tallies[j].name:<12} " if len(self.targets) > 1 else ""
        self._width = max(self._width, len(label))
        text = (
            f"{label:<{self._width}} {name}{self._number(value):>11} {self._number(mean):>11} {interval:>25} "
            f"{_BLANK if math.isnan(surprise) else format(surprise, '.2f'):>9} "
            f"{self._number(float(after.mean[i, j])):>11}"
        )
        text += "  ◀ anomaly" if anomaly else "  missing" if math.isnan(value) else ""
        style = "bold red" if anomaly else "dim" if math.isnan(value) else ""
        if style and out.is_terminal:
            out.print(text, style=style, markup=False, soft_wrap=True)
        else:
            sys.stdout.write(text + "\n")

    def header(self) -> None:
        """Prints the names of what `take` prints."""
        name = f"{'series':<12} " if len(self.targets) > 1 else ""
        text = (
            f"{'at':<{self._width}} {name}{'value':>11} {'expected':>11} {f'{exact_percent(self.level)} interval':>25} "
            f"{'surprise':>9} {'next':>11}"
        )
        out.print(text, style="bold", soft_wrap=True)

    def summary(self) -> None:
        """Prints how well the values were expected."""
        for tally in self.tallies:
            title = f"{tally.name}: " if len(self.tallies) > 1 else ""
            missing = f", {tally.missing:,} missing" if tally.missing else ""
            out.print(f"\n[bold]{escape(title)}{tally.values:,} values{missing}[/bold]")
            if not tally.judged:
                continue
            out.print(
                f"  {tally.inside / tally.judged:.1%} within their {exact_percent(self.level)} interval, "
                f"{tally.anomalies:,} outside their {exact_percent(self.anomaly)} interval (anomalies)"
            )
            error, persistence = tally.error / tally.judged, tally.persistence / tally.judged
            out.print(
                f"  mean absolute error {error:.4g}, against {persistence:.4g} of persistence "
                f"(the last value){_compared(error, persistence)}"
            )
            out.print(f"  mean surprise {tally.surprise / tally.judged:.2f} nats")

    def _number(self, value: float) -> str:
        if math.isnan(value):
            return _BLANK
        magnitude = math.floor(math.log10(self._largest)) if self._largest else 0
        return f"{value:.{min(self._decimals + 1, max(0, 5 - magnitude))}f}"


class _Series:
    """One session a column, for models of one column."""

    def __init__(self, client: Client, model: str, names: Sequence[str]) -> None:
        self._fleet = client.fleet(model)
        self._names = list(names)

    def observe(self, values: Floats) -> ValuePredictions:
        predictions = self._fleet.observe(self._names * len(values), values.reshape(-1))
        for error in predictions.errors.values():
            raise error
        return predictions

    def close(self) -> None:
        self._fleet.close()


class _Rows:
    """One session for all columns, for models of several."""

    def __init__(self, client: Client, model: str) -> None:
        self._session = client.session(model)

    def observe(self, values: Floats) -> ValuePredictions:
        return self._session.observe_many(values)

    def close(self) -> None:
        self._session.close()


def watch(
    access: Access,
    model: str,
    file: Path | None,
    columns: Sequence[str],
    level: float,
    anomaly: float,
    plot: Path | None,
) -> None:
    """Reads, observes and prints until the input ends or Ctrl-C."""
    if plot is not None:
        _require_matplotlib()
    with ExitStack() as stack:
        source = _open(stack, file)
        client = stack.enter_context(access.client())
        description = client.model(model)
        if description.task != "next-value":
            raise InvalidInput(f"{model} is no next-value model, which watch needs; name one with --model")
        reader = Reader(columns, lambda message: err.print(f"[yellow]{escape(message)}[/yellow]"))
        watcher: Watcher | None = None

        def work() -> None:
            nonlocal watcher
            for batch in batches(source):
                rows = [row for line in batch if (row := reader.read(line)) is not None]
                if rows and watcher is None:
                    watcher = _watcher(stack, client, description, reader.names, level, anomaly, plot is not None)
                    watcher.header()
                if rows and watcher is not None:
                    watcher.take(rows)

        try:
            until_interrupted(work)
        except HiddenstateError:
            if watcher is not None:
                watcher.summary()
            raise
        if watcher is None:
            raise InvalidInput("the input has no values")
        watcher.summary()
        if plot is not None:
            from hiddenstate.cli.plot import draw

            draw(watcher, plot)
            out.print(f"  drawn into {plot}")


def _watcher(
    stack: ExitStack,
    client: Client,
    model: Model,
    names: list[str],
    level: float,
    anomaly: float,
    keep: bool,
) -> Watcher:
    width = len(model.columns)
    if width > 1 and len(names) != width:
        raise InvalidInput(
            f"{model.name} takes {width} columns together ({', '.join(model.columns)}); "
            f"name as many with --column, in this order"
        )
    source = _Series(client, model.name, names) if width == 1 else _Rows(client, model.name)

    def leave(kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, HiddenstateError):  # else the server is not there to be told
            source.close()

    stack.push(leave)
    targets = list(range(len(names))) if width == 1 else list(model.targets)
    return Watcher(names, targets, source, level, anomaly, keep)


def _open(stack: ExitStack, file: Path | None) -> TextIO:
    if file is None or str(file) == "-":
        if sys.stdin.isatty():
            err.print("Type numbers, one a line; Ctrl-D ends.", style="dim")
        return sys.stdin
    try:
        return stack.enter_context(file.open(encoding="utf-8"))
    except OSError as error:
        raise fail(f"{file} cannot be read: {error.strerror}") from None


def _require_matplotlib() -> None:
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        raise fail("--plot needs matplotlib: pip install 'hiddenstate[plot]'") from None


def _pairs(old: Expected, new: Expected) -> list[tuple[Floats, Floats]]:
    return [(getattr(old, name), getattr(new, name)) for name in ("mean", "lower", "upper", "low", "high")]


def _compared(error: float, persistence: float) -> str:
    if not persistence:
        return ""
    share = 1.0 - error / persistence
    return f": {share:.1%} less" if share >= 0 else f": {-share:.1%} more"
