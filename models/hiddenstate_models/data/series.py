"""Series of values from CSV files, tables, and text with one row of numbers a line.

A column of times, where there is one, puts the rows in order; rows of the same time are averaged, and where the
times are regular, missing rows are filled in with NaN.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from hiddenstate_models.data.sources import File, Source
from hiddenstate_models.errors import DataError
from hiddenstate_models.limits import LARGEST_VALUE
from hiddenstate_models.wording import counted

Layout = Literal["auto", "columns", "joint", "rows"]
Floats = npt.NDArray[np.float64]

LONGEST_GAP = 1000
"""A longer gap in the times is filled in with so many rows."""

_MISSING = ["", "NA", "N/A", "na", "n/a", "NaN", "nan", "null", "NULL", "None", "?"]
_TIME_NAMES = {"timestamp", "time", "datetime", "date", "date_time", "ds", "epoch"}
_MONTH_FIRST = ("%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y")
"""Formats that polars does not try by itself."""
_WIDE = 200
_REGULAR = 0.9
_TEXT = {".txt", ".dat"}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|nan", re.IGNORECASE)


@dataclass(frozen=True)
class Series:
    """A series by its name: values [N, columns], NaN where missing."""

    name: str
    columns: tuple[str, ...]
    values: Floats


def read_series(sources: Iterable[Source], *, columns: Sequence[str] = (), layout: Layout = "auto") -> list[Series]:
    """The series in sources, in order; `columns` are names or patterns such as `*_MW`, none of them all numeric ones.

    A source's own columns go before. Standard input is rows of numbers if its first line is one, else CSV.

    Layouts: every column a series of its own ("columns"), a file's columns together one series ("joint"), or every
    row a series ("rows"). "auto" takes tables of more than 200 columns and no times by rows, others by columns.

    Raises:
        DataError: a source cannot be read or holds nothing usable; says where.
    """
    series: list[Series] = []
    for source in sources:
        table = _read(source)
        stem = Path(source.label).stem
        time = _time_column(table)
        if layout == "rows" or (layout == "auto" and time is None and table.width > _WIDE):
            series += _rows(source, stem, table)
            continue
        names, values = _numeric(source, table, source.columns or columns, time)
        if time is not None:
            values = _in_order(source, table[time], values)
        if layout == "joint":
            series.append(Series(stem, names, values))
        else:
            series += [Series(f"{stem}/{name}", (name,), values[:, [i]]) for i, name in enumerate(names)]
    if layout == "joint" and len({one.columns for one in series}) > 1:
        raise DataError("files read jointly must have the same columns; choose common ones with --columns")
    return series


def _read(source: Source) -> pl.DataFrame:
    """A source as a table; what came from text is still text."""
    if source.form == "table":
        table = source.table()
    elif _is_rows_of_numbers(source):
        table = _read_text(source)
    else:
        file = source.path if isinstance(source, File) else source.open()
        try:
            table = pl.read_csv(file, infer_schema=False, null_values=_MISSING)
        except (OSError, pl.exceptions.PolarsError) as error:
            reason = _uneven_line(source) or str(error).splitlines()[0]
            raise DataError(f"cannot read {source.name}: {reason}") from error
    if table.is_empty():
        raise DataError(f"{source.name} has no rows")
    return table


def _is_rows_of_numbers(source: Source) -> bool:
    if isinstance(source, File):
        return source.path.suffix in _TEXT
    fields = _fields(next(source.lines()))
    return all(map(_NUMBER.fullmatch, fields))


def _fields(line: str) -> list[str]:
    return line.replace(",", " ").split() or [""]


def _read_text(source: Source) -> pl.DataFrame:
    rows = [_fields(line) for line in source.lines()]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{source.name}, line {number}: {counted(len(row), 'number')} where the first line has {len(rows[0])}"
            )
    fields = {f"column_{i + 1}": list(field) for i, field in enumerate(zip(*rows, strict=True))}
    table = pl.DataFrame(fields, schema=dict.fromkeys(fields, pl.String))
    return table.with_columns(pl.when(pl.all().is_in(_MISSING)).then(None).otherwise(pl.all()).name.keep())


def _uneven_line(source: Source) -> str | None:
    """Which line of a CSV file has another number of fields than its header, if that is what is wrong."""
    try:
        reader = csv.reader(source.lines())
        header = next(reader, [])
        for row in reader:
            if row and len(row) != len(header):
                return f"line {reader.line_num} has {counted(len(row), 'field')} where the header has {len(header)}"
    except (DataError, csv.Error):
        return None
    return None


def _time_column(table: pl.DataFrame) -> str | None:
    """The first column that holds times: by its type, by its name, or because its text reads as times."""
    for name in table.columns:
        column = table[name]
        if column.dtype.is_temporal():
            return name
        numeric = _parse_numbers(column).count() > 0
        if (name.lower() in _TIME_NAMES) if numeric else _parse_dates(column.head(100)) is not None:
            return name
    return None


def _parse_times(column: pl.Series) -> pl.Series | None:
    """A column as numbers that rise with time, null where it cannot be read; None where it holds no times."""
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("us")).to_physical()
    numbers = _parse_numbers(column)
    return numbers if numbers.count() else _parse_dates(column)


def _parse_dates(column: pl.Series) -> pl.Series | None:
    """Text as microseconds, in the format of its first entry."""
    if column.dtype != pl.String:
        return None
    for time_format in (None, *_MONTH_FIRST):
        try:
            times = column.str.to_datetime(time_format, strict=False, time_unit="us")
        except pl.exceptions.PolarsError:
            continue
        if times.count():
            return times.to_physical()
    return None


def _parse_numbers(column: pl.Series) -> pl.Series:
    """Null where an entry is no number."""
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        return pl.Series(column.name, [None] * len(column), pl.Float64)
    return column.cast(pl.Float64, strict=False)


def _numeric(
    source: Source, table: pl.DataFrame, chosen: Sequence[str], time: str | None
) -> tuple[tuple[str, ...], Floats]:
    """Names and values [N, columns] of the chosen columns, or of all in which numbers are the rule."""
    fields: dict[str, Floats] = {}
    for name in table.columns:
        if (
            table[name].dtype.is_temporal()
            or name == time
            or (chosen and not any(fnmatchcase(name, pattern) for pattern in chosen))
        ):
            continue
        text, numbers = table[name], _parse_numbers(table[name])
        if not chosen and numbers.count() * 2 < text.count():
            continue
        unread = (text.is_not_null() & numbers.is_null()).arg_true()
        if len(unread):
            raise DataError(f"{_place(source, unread[0])}, column {name!r}: {text[unread[0]]!r} is no number")
        values = numbers.to_numpy().astype(np.float64)
        large = np.flatnonzero(np.abs(values) > LARGEST_VALUE)
        if len(large):
            place, value = _place(source, large[0]), values[large[0]]
            raise DataError(f"{place}, column {name!r}: {value} is infinite or beyond {LARGEST_VALUE:g}")
        if not np.isnan(values).all():
            fields[name] = values
    if not fields:
        wanted = f"no column with values that matches {', '.join(chosen)}" if chosen else "no numeric column"
        raise DataError(f"{source.name} has {wanted}; it has {', '.join(table.columns[:20])}")
    return tuple(fields), np.column_stack(list(fields.values()))


def _place(source: Source, row: int) -> str:
    if source.form == "table":
        return f"{source.name}, row {row + 1}"
    header = 0 if _is_rows_of_numbers(source) else 1
    return f"{source.name}, line {row + 1 + header}"


def _rows(source: Source, stem: str, table: pl.DataFrame) -> list[Series]:
    """Every row as a series named by the first column if that is text; missing values at its ends are cut off."""
    first = table.columns[0]
    named = _parse_numbers(table[first]).count() == 0
    names = [str(name) for name in table[first]] if named else [str(i + 1) for i in range(table.height)]
    _, columns = _numeric(source, table.drop(first) if named else table, (), None)
    series = []
    for name, values in zip(names, columns, strict=True):
        present = np.flatnonzero(~np.isnan(values))
        if len(present):
            trimmed = values[present[0] : present[-1] + 1, None]
            series.append(Series(f"{stem}/{name}", ("value",), np.ascontiguousarray(trimmed)))
    return series


def _in_order(source: Source, column: pl.Series, values: Floats) -> Floats:
    """Rows by rising time, equal times averaged, missing rows of a regular series as NaN."""
    parsed = _parse_times(column)
    unread = range(len(column)) if parsed is None else parsed.is_null().arg_true()
    if parsed is None or len(unread):
        raise DataError(f"{_place(source, unread[0])}, column {column.name!r}: {column[unread[0]]!r} is no time")
    times, groups = np.unique(parsed.to_numpy(), return_inverse=True)
    present = ~np.isnan(values)
    sums, counts = np.zeros((len(times), values.shape[1])), np.zeros((len(times), values.shape[1]))
    np.add.at(sums, groups, np.where(present, values, 0))
    np.add.at(counts, groups, present)
    means: Floats = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    if len(times) < 3:
        return means
    steps = np.diff(times)
    sizes, occurrences = np.unique(steps, return_counts=True)
    if occurrences.max() < _REGULAR * len(steps):
        return means
    ahead = np.clip(np.rint(steps / sizes[occurrences.argmax()]), 1, LONGEST_GAP + 1).astype(np.int64)
    places = np.concatenate([[0], np.cumsum(ahead)])
    filled = np.full((places[-1] + 1, means.shape[1]), np.nan)
    filled[places] = means
    return filled
