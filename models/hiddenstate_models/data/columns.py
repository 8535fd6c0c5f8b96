"""Which column of a table is which, and text whether it lies in a table or not."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import polars as pl

from hiddenstate_models.data.sources import Source
from hiddenstate_models.errors import DataError
from hiddenstate_models.wording import counted


@dataclass(frozen=True)
class Role:
    """What a column of a table is for, and how it is known."""

    names: Sequence[str]
    """What it is called by habit, in lower case."""
    fits: Callable[[Any], bool]
    """Whether a column of that polars type will do."""
    kind: str
    """What it must hold, in words."""
    first: bool = False
    """Without a name of habit the first that fits is taken."""


TEXT = Role(("text", "sentence", "review", "content", "document"), lambda kind: kind == pl.String, "text", first=True)


def columns_for(source: Source, table: pl.DataFrame, *roles: Role) -> list[str]:
    """Which column has which role: those that were asked for in their order, then those with names of habit.

    Raises:
        DataError: a column is missing or of the wrong type, or there are no rows.
    """
    if table.is_empty():
        raise DataError(f"{source.name} has no rows")
    if len(source.columns) > len(roles):
        usable = counted(len(roles), "column")
        raise DataError(f"{source.name}: {len(source.columns)} columns are asked for, and {usable} can be used")
    chosen: list[str] = []
    for role, asked in itertools.zip_longest(roles, source.columns):
        if asked is not None:
            chosen.append(_asked_for(source, table, role, asked))
            continue
        fitting = [name for name in table.columns if role.fits(table.schema[name]) and name not in chosen]
        habitual = [name for name in fitting if name.lower() in role.names]
        if not habitual and not (role.first and fitting):
            wanted = f"with {role.kind}" if role.first else f"called {' or '.join(role.names)} with {role.kind}"
            raise DataError(f"{source.name} has no column {wanted}; {_there_are(table)}")
        chosen.append((habitual or fitting)[0])
    return chosen


def texts_of(source: Source) -> Iterator[str]:
    """The entries of a table's column of text that are not missing.

    Raises:
        DataError: there is no such column.
    """
    table = source.table()
    (column,) = columns_for(source, table, TEXT)
    return (entry for entry in table[column] if entry is not None)


def text_of(source: Source) -> str:
    """All of it; the rows of a table's column of text as lines.

    Raises:
        DataError: it cannot be read as text.
    """
    if source.form == "table" or source.columns:
        return "\n".join(texts_of(source))
    return "".join(source.lines())


def _asked_for(source: Source, table: pl.DataFrame, role: Role, asked: str) -> str:
    found = next((name for name in table.columns if name == asked or fnmatchcase(name, asked)), None)
    if found is None:
        raise DataError(f"{source.name} has no column {asked!r}; {_there_are(table)}")
    if not role.fits(table.schema[found]):
        raise DataError(
            f"{source.name}: column {found!r} holds {table.schema[found]}, and {role.kind} is needed; "
            f"{_there_are(table)}"
        )
    return found


def _there_are(table: pl.DataFrame) -> str:
    shown = [f"{name} ({kind})" for name, kind in itertools.islice(table.schema.items(), 20)]
    more = f" and {table.width - len(shown)} more" if table.width > len(shown) else ""
    return f"its columns are {', '.join(shown)}{more}"
