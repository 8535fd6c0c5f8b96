"""Numbers out of lines of text: CSV with or without a header, or plain numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hiddenstate.errors import InvalidInput

_MISSING = {"", "nan", "na", "n/a", "null", "none", "-", "?"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what to call it, and its values (NaN where missing) with their digits after the point."""

    label: str
    values: list[float]
    decimals: int


@dataclass
class Reader:
    """Finds the wanted columns in the first lines, then makes rows of lines.

    `wanted` has names or numbers from 1; empty: the only column with numbers. `warn` is told about cells that are
    no numbers, which count as missing.
    """

    wanted: Sequence[str]
    warn: Callable[[str], None]
    names: list[str] = field(default_factory=list)
    """Of the columns read; known after the first row."""
    _delimiter: str = ""
    _header: list[str] = field(default_factory=list)
    _indices: list[int] = field(default_factory=list)
    _label: int | None = None
    _line: int = 0

    def read(self, line: str) -> Row | None:
        """The line's row; None for a header or an empty line. Raises InvalidInput where a column is not to be found."""
        self._line += 1
        if not line.strip():
            return None
        cells = self._cells(line)
        if not self._indices:
            if not self._header and _is_header(cells):
                self._header = cells
                return None
            self._choose(cells)
        values = [self._value(cells[i] if i < len(cells) else "") for i in self._indices]
        label = cells[self._label] if self._label is not None and self._label < len(cells) else str(self._line)
        decimals = max((_decimals(cells[i]) for i in self._indices if i < len(cells)), default=0)
        return Row(label, values, decimals)

    def _cells(self, line: str) -> list[str]:
        if not self._delimiter:
            line = line.removeprefix("\ufeff")
            self._delimiter = next((mark for mark in "\t;," if mark in line), ",")
        return [cell.strip() for cell in next(csv.reader([line], delimiter=self._delimiter))]

    def _choose(self, cells: list[str]) -> None:
        numeric = [i for i, cell in enumerate(cells) if _is_number(cell)]
        if self.wanted:
            self._indices = [self._index(name, len(cells)) for name in self.wanted]
        elif len(numeric) == 1 or len(cells) == 1:
            self._indices = numeric or [0]
        elif not numeric:
            raise InvalidInput(f"line {self._line} has no number; say which column to watch with --column")
        else:
            choices = ", ".join(self._name(i) for i in numeric)
            raise InvalidInput(f"several columns hold numbers ({choices}); say which to watch with --column")
        self.names = [self._name(i) for i in self._indices]
        others = [i for i, cell in enumerate(cells) if i not in self._indices and i not in numeric and cell]
        self._label = others[0] if others else None

    def _index(self, name: str, width: int) -> int:
        if name in self._header:
            return self._header.index(name)
        if name.isdecimal() and 1 <= int(name) <= width:
            return int(name) - 1
        columns = ", ".join(self._header) if self._header else f"1 to {width}"
        raise InvalidInput(f"there is no column {name}; the input has {columns}")

    def _name(self, index: int) -> str:
        return self._header[index] if index < len(self._header) else f"{index + 1}"

    def _value(self, cell: str) -> float:
        if cell.lower() in _MISSING:
            return math.nan
        try:
            value = float(cell)
        except ValueError:
            value = math.inf
        if math.isinf(value):
            self.warn(f"line {self._line}: {cell!r} is not a number and counts as missing")
            return math.nan
        return value


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _is_header(cells: list[str]) -> bool:
    """Text and no number; one line of missing values is none."""
    return not any(map(_is_number, cells)) and any(cell.lower() not in _MISSING for cell in cells)


def _decimals(cell: str) -> int:
    """Digits after the point, as written."""
    if "e" in cell.lower() or not _is_number(cell):
        return 0
    return len(cell.partition(".")[2])
