"""Labelled text from files: a label for a whole text, or a tag for every word."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from hiddenstate_models.data.entities import iob2, marks_entities
from hiddenstate_models.errors import DataError

Side = Literal["auto", "first", "last"]
# Dates, numbers, abbreviations and hyphenated words are words, as in data for tagging; a contraction's tail is one too.
TAGGED_WORD_PATTERN = r"<unk>|'\w+|(?:\w\.){2,}|\w+(?:[-&/.,:]\w+)*|[^\w\s]"

_TEXT_NAMES, _LABEL_NAMES = ("text", "sentence", "review"), ("label", "target", "class")
_DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True)
class LabelledText:
    """A text and what it is."""

    text: str
    label: str


@dataclass(frozen=True)
class TaggedSentence:
    """Words and a tag for each: entities as B-TYPE and I-TYPE (what continues one), O outside; or tags of any kind."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_texts(paths: Iterable[Path], label: Side = "auto") -> list[LabelledText]:
    """Labelled texts in files, in order: a label and a text a line, separated by a tab; or CSV and Parquet tables.

    `label` is the side of the tab the label stands on; "auto": the side with fewer different entries. Tables have a
    column called text (or sentence, review) and one called label (or target, class).

    Raises:
        DataError: a file cannot be read, or a line has no tab.
    """
    texts: list[LabelledText] = []
    for path in paths:
        pairs = _table(path) if path.suffix in (".csv", ".parquet") else _lines(path, label)
        texts += [LabelledText(text, name) for text, name in pairs]
    return texts


def read_tagged(paths: Iterable[Path]) -> list[TaggedSentence]:
    """Tagged sentences in files of columns (CoNLL): a word a line, its tag last, blank lines between.

    Columns are separated by tabs or spaces. Entities may be marked in any of the usual ways (IOB1, IOB2, BIOES, BILOU)
    and come as IOB2. Lines that begin with -DOCSTART- are left out.

    Raises:
        DataError: a file cannot be read, or a line has no tag.
    """
    sentences: list[TaggedSentence] = []
    for path in paths:
        words: list[str] = []
        tags: list[str] = []
        for number, line in enumerate([*_read(path), ""], start=1):
            fields = line.split("\t") if "\t" in line else line.split()
            if fields and fields[0] == _DOCUMENT:
                continue
            if line.strip():
                if len(fields) < 2:
                    raise DataError(
                        f"{path}, line {number}: a word without a tag; columns are a word first, its tag last"
                    )
                words.append(fields[0].strip())
                tags.append(fields[-1].strip())
            elif words:
                sentences.append(TaggedSentence(tuple(words), tuple(tags)))
                words, tags = [], []
    if not marks_entities(tag for sentence in sentences for tag in sentence.tags):
        return sentences
    return [TaggedSentence(sentence.words, tuple(iob2(sentence.tags))) for sentence in sentences]


def names_of(labels: Iterable[str]) -> tuple[str, ...]:
    """Every label once, the most frequent first.

    Raises:
        DataError: there are less than two.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        raise DataError(f"there is nothing to tell apart: the only label is {next(iter(counts), None)!r}")
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))


def _lines(path: Path, label: Side) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(_read(path), start=1):
        if not line.strip():
            continue
        first, tab, last = line.partition("\t")
        if not tab or not first.strip() or not last.strip():
            raise DataError(f"{path}, line {number}: expected a label and a text with a tab between them, in any order")
        pairs.append((first.strip(), last.strip()))
    if label == "auto":
        label = "last" if len({last for _, last in pairs}) < len({first for first, _ in pairs}) else "first"
    return pairs if label == "last" else [(last, first) for first, last in pairs]


def _table(path: Path) -> list[tuple[str, str]]:
    try:
        table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    columns = []
    for names in (_TEXT_NAMES, _LABEL_NAMES):
        found = next((name for name in table.columns if name.lower() in names), None)
        if found is None:
            raise DataError(f"{path} has no column called {' or '.join(names)}; its columns are {table.columns}")
        columns.append(table[found].cast(pl.String).to_list())
    return [(text, label) for text, label in zip(*columns, strict=True) if text and label]


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8 text: {error}") from error
