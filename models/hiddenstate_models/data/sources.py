"""What a user names as data, found and opened: files, globs, standard input, and data sets of Hugging Face.

books/*.txt, 'books/**/*.txt'      files
reviews.parquet:text               a column of a table, .parquet or .csv; several: text,label
-                                  standard input
hf:NAME[,CONF][:SPLIT][:COLUMN]    a data set of the Hub, or of a local folder of files
FOLDER[:SPLIT][:COLUMN]            a folder that `save_to_disk` of the library datasets has written
"""

import glob
import io
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal, TextIO

import polars as pl

from hiddenstate_models.errors import ConfigurationError, DataError

STANDARD_INPUT = "-"

_HUB = re.compile(
    r"hf:(?P<name>[^:,]+)(,(?P<configuration>[^:]+))?(:(?P<split>[^:\[]*(\[[^\]]*\])?))?(:(?P<columns>.+))?"
)
_DEFAULT_SPLIT = "train"
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
"""Files by which a folder of `save_to_disk` is known: of one data set, of several splits."""


class Source(ABC):
    """One thing to read."""

    columns: tuple[str, ...]
    """Of a table, those that were asked for, names or patterns; none: the reader chooses."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What was typed for it, and stands in messages."""

    @property
    def label(self) -> str:
        """A short name."""
        return self.name

    @property
    @abstractmethod
    def form(self) -> Literal["text", "csv", "table"]:
        """What it holds: text of any kind, text that is a table, or a table of typed columns."""

    @abstractmethod
    def open(self) -> IO[bytes]:
        """Its bytes, if it is no "table".

        Raises:
            OSError: it cannot be read.
        """

    @abstractmethod
    def table(self) -> pl.DataFrame:
        """Its columns, if it is no "text"; those of "csv" are all text.

        Raises:
            DataError: it cannot be read.
        """

    def lines(self) -> Iterator[str]:
        """Its text line by line, read as they are asked for; each ends with a newline but perhaps the last.

        Raises:
            DataError: it cannot be read, or is no UTF-8.
        """
        number = 0
        try:
            with self.open() as file:
                for line in file:
                    number += 1
                    yield line.decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DataError(
                f"{self.name}, line {number}: byte {byte:#04x} is no UTF-8; convert the file to UTF-8"
            ) from error
        except OSError as error:
            raise DataError(f"cannot read {self.name}: {error}") from error


@dataclass(frozen=True)
class File(Source):
    """A file; a table if its name ends in .parquet or .csv."""

    path: Path
    columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return ":".join([str(self.path), *filter(None, [",".join(self.columns)])])

    @property
    def label(self) -> str:
        return self.path.name

    @property
    def form(self) -> Literal["text", "csv", "table"]:
        return {".parquet": "table", ".csv": "csv"}.get(self.path.suffix, "text")  # type: ignore[return-value]

    def open(self) -> IO[bytes]:
        return self.path.open("rb")

    def table(self) -> pl.DataFrame:
        try:
            return pl.read_parquet(self.path) if self.form == "table" else pl.read_csv(self.path, infer_schema=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"cannot read {self.path}: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class StandardInput(Source):
    """Read once and remembered, so that it may be asked for again."""

    columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return STANDARD_INPUT

    @property
    def label(self) -> str:
        return "standard input"

    @property
    def form(self) -> Literal["text", "csv", "table"]:
        return "text"

    def open(self) -> IO[bytes]:
        return io.BytesIO(_all_of(sys.stdin))

    def table(self) -> pl.DataFrame:
        raise DataError("standard input is read as text; put a table into a file and name that")


@lru_cache(maxsize=1)
def _all_of(stream: TextIO) -> bytes:
    content = stream.buffer.read()
    if not content.strip():
        raise DataError("standard input is empty: pipe data into the command, or name files in place of -")
    return content


@dataclass(frozen=True)
class DataSet(Source):
    """A split of a data set that the library datasets reads; class labels are read by their names."""

    columns: tuple[str, ...]
    place: str
    """A name on the Hub, or a folder."""
    configuration: str | None
    split: str | None
    saved: bool
    """Whether it is a folder of `save_to_disk`."""

    @property
    def name(self) -> str:
        if self.saved:
            return ":".join([self.place, *filter(None, [self.split, ",".join(self.columns)])])
        place = ",".join(filter(None, [self.place, self.configuration]))
        return ":".join(["hf", place, *([self.split] if self.split else []), *filter(None, [",".join(self.columns)])])

    @property
    def form(self) -> Literal["text", "csv", "table"]:
        return "table"

    def open(self) -> IO[bytes]:
        raise DataError(f"{self.name} is a data set, and this reads files only")

    def table(self) -> pl.DataFrame:
        library = _datasets(self.name)
        try:
            if self.saved:
                found = library.load_from_disk(self.place)
                found = found if self.split is None else found[self.split]
            else:
                found = library.load_dataset(self.place, self.configuration, split=self.split)
            return _named_labels(found.to_polars(), found.features)
        except Exception as error:  # the library raises errors of many kinds, its own and those of what it is built on
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"cannot load {self.name}: {reason}") from error


def expand(patterns: Iterable[str]) -> list[Source]:
    """What was typed as sources, in order, each once.

    Raises:
        DataError: something matches nothing, or is a folder.
        ConfigurationError: standard input is to be read by several processes.
    """
    return list(dict.fromkeys(source for pattern in patterns for source in _found(pattern)))


def files(patterns: Iterable[str]) -> list[Path]:
    """The same for data that only files hold.

    Raises:
        DataError: something is no file.
    """
    return paths_of(expand(patterns))


def paths_of(sources: Iterable[Source]) -> list[Path]:
    """The sources as files.

    Raises:
        DataError: one is no file.
    """
    paths: list[Path] = []
    for source in sources:
        if not isinstance(source, File) or source.columns:
            raise DataError(f"{source.name!r} is no file, and this data is read from files only")
        paths.append(source.path)
    return paths


def _found(pattern: str) -> list[Source]:
    if pattern == STANDARD_INPUT:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1:
            raise ConfigurationError(
                f"standard input cannot be shared by {processes} processes: write it into a file and name that"
            )
        return [StandardInput()]
    if pattern.startswith("hf:"):
        return [_of_hub(pattern)]
    # A name may hold colons itself, so what follows one is looked at only where nothing has the whole name.
    places = [len(pattern), *(match.start() for match in reversed(list(re.finditer(":", pattern))))]
    for place in places:
        paths = _paths(pattern[:place])
        if paths:
            return [source for path in paths for source in _of_path(path, pattern[place + 1 :])]
    folder = Path(pattern).expanduser()
    if folder.is_dir():
        raise DataError(
            f"{pattern!r} is a folder; name the files in it, such as '{folder}/*.txt' or '{folder}/**/*.csv'"
        )
    raise DataError(f"no file matches {pattern!r} in {Path.cwd()}")


def _paths(pattern: str) -> list[Path]:
    """Files and saved data sets."""
    pattern = str(Path(pattern).expanduser()) if pattern else pattern
    is_glob = glob.has_magic(pattern) and not Path(pattern).exists()
    names = sorted(glob.glob(pattern, recursive=True)) if is_glob else [pattern]  # noqa: PTH207
    return [path for path in map(Path, names) if path.is_file() or _is_saved(path)]


def _is_saved(path: Path) -> bool:
    return (path / _SAVED).is_file() or (path / _SAVED_SPLITS).is_file()


def _of_path(path: Path, rest: str) -> list[Source]:
    if path.is_file():
        source = File(path, _names(rest))
        if rest and source.form == "text":
            raise DataError(f"{path} is no table of which {rest!r} could be a column: .parquet and .csv files are")
        return [source]
    if not (path / _SAVED_SPLITS).is_file():
        return [DataSet(_names(rest), str(path), None, None, saved=True)]
    splits = sorted(child.name for child in path.iterdir() if (child / _SAVED).is_file())
    split, _, columns = rest.partition(":")
    split = split or (splits[0] if len(splits) == 1 else _DEFAULT_SPLIT)
    if split not in splits:
        raise DataError(f"{path} has no split {split!r}; it has {', '.join(splits)}: name one, {path}:SPLIT")
    return [DataSet(_names(columns), str(path), None, split, saved=True)]


def _of_hub(pattern: str) -> DataSet:
    match = _HUB.fullmatch(pattern)
    if match is None:
        raise DataError(f"{pattern!r} names no data set; that is done by hf:NAME[,CONF][:SPLIT][:COLUMN]")
    return DataSet(
        _names(match["columns"] or ""),
        match["name"],
        match["configuration"],
        match["split"] or _DEFAULT_SPLIT,
        saved=False,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"reading {name} needs the library datasets: pip install 'hiddenstate[datasets]'") from error
    return datasets


def _named_labels(table: pl.DataFrame, features: Any) -> pl.DataFrame:
    """Numbers of class labels, alone or in lists, replaced by their names; a number that has none by nothing."""
    replaced = []
    for column, feature in features.items():
        inner = getattr(feature, "feature", feature)
        names = getattr(inner, "names", None)
        if names is None:
            continue
        numbers = pl.col(column) if inner is feature else pl.element()
        named = numbers.replace_strict(dict(enumerate(names)), default=None, return_dtype=pl.String)
        replaced.append(named if inner is feature else pl.col(column).list.eval(named))
    return table.with_columns(replaced)
