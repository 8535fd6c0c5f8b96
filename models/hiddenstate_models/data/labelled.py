"""Labelled text from files: a label for a whole text, or a tag for every word."""

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from hiddenstate_models.data.columns import TEXT, Role, columns_for
from hiddenstate_models.data.entities import iob2, marks_entities
from hiddenstate_models.data.sources import Source
from hiddenstate_models.errors import DataError

Side = Literal["auto", "first", "last"]
# Dates, numbers, abbreviations and hyphenated words are words, as in data for tagging; a contraction's tail is one too.
TAGGED_WORD_PATTERN = r"<unk>|'\w+|(?:\w\.){2,}|\w+(?:[-&/.,:]\w+)*|[^\w\s]"

_DOCUMENT = "-DOCSTART-"


def _is_list(kind: Any) -> bool:
    return isinstance(kind, pl.List | pl.Array)


_LABEL = Role(("label", "target", "class"), lambda kind: not kind.is_nested(), "labels")
_WORDS = Role(("tokens", "words"), lambda kind: _is_list(kind) and kind.inner == pl.String, "lists of words")
_TAGS = Role(("ner_tags", "tags", "labels", "pos_tags"), _is_list, "lists of tags")


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


def read_texts(sources: Iterable[Source], label: Side = "auto") -> list[LabelledText]:
    """Labelled texts, in order: a label and a text a line, separated by a tab; or the rows of tables.

    `label` is the side of the tab the label stands on; "auto": the side with fewer different entries. Tables have a
    column of text, called text, sentence or review if there are several, and one called label (or target, class),
    unless columns are asked for: the text's, the label's.

    Raises:
        DataError: a source cannot be read, holds nothing, or has a line without a tab.
    """
    texts: list[LabelledText] = []
    for source in sources:
        pairs = _lines(source, label) if source.form == "text" else _table(source)
        if not pairs:
            raise DataError(f"{source.name} holds no text with a label")
        texts += [LabelledText(text, name) for text, name in pairs]
    return texts


def read_tagged(sources: Iterable[Source]) -> list[TaggedSentence]:
    """Tagged sentences: files of columns (CoNLL), a word a line, its tag last, blank lines between; or rows of tables.

    Columns are separated by tabs or spaces. Entities may be marked in any of the usual ways (IOB1, IOB2, BIOES, BILOU)
    and come as IOB2. Lines that begin with -DOCSTART- are left out. Tables have a column of lists of words, called
    tokens (or words), and one of lists of tags, called ner_tags (or tags, labels, pos_tags), unless they are asked for.

    Raises:
        DataError: a source cannot be read, holds nothing, or has a word without a tag.
    """
    sentences: list[TaggedSentence] = []
    for source in sources:
        found = _tagged_rows(source) if source.form == "table" else _tagged_lines(source)
        if not found:
            raise DataError(f"{source.name} holds no words with tags")
        sentences += found
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


def _lines(source: Source, label: Side) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(source.lines(), start=1):
        if not line.strip():
            continue
        first, tab, last = line.partition("\t")
        if not tab or not first.strip() or not last.strip():
            raise DataError(
                f"{source.name}, line {number}: expected a label and a text with a tab between them, in any order"
            )
        pairs.append((first.strip(), last.strip()))
    if label == "auto":
        label = "last" if len({last for _, last in pairs}) < len({first for first, _ in pairs}) else "first"
    return pairs if label == "last" else [(last, first) for first, last in pairs]


def _table(source: Source) -> list[tuple[str, str]]:
    table = source.table()
    columns = [table[name].cast(pl.String).to_list() for name in columns_for(source, table, TEXT, _LABEL)]
    return [(text, label) for text, label in zip(*columns, strict=True) if text and label]


def _tagged_lines(source: Source) -> list[TaggedSentence]:
    sentences: list[TaggedSentence] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(itertools.chain(source.lines(), [""]), start=1):
        fields = line.split("\t") if "\t" in line else line.split()
        if fields and fields[0] == _DOCUMENT:
            continue
        if line.strip():
            if len(fields) < 2:
                raise DataError(
                    f"{source.name}, line {number}: a word without a tag; columns are a word first, its tag last"
                )
            words.append(fields[0].strip())
            tags.append(fields[-1].strip())
        elif words:
            sentences.append(TaggedSentence(tuple(words), tuple(tags)))
            words, tags = [], []
    return sentences


def _tagged_rows(source: Source) -> list[TaggedSentence]:
    table = source.table()
    words, tags = (table[name].to_list() for name in columns_for(source, table, _WORDS, _TAGS))
    sentences: list[TaggedSentence] = []
    for number, (row, marks) in enumerate(zip(words, tags, strict=True), start=1):
        if len(row or ()) != len(marks or ()) or None in (row or ()) or None in (marks or ()):
            raise DataError(f"{source.name}, row {number}: every word must have a tag, and every tag a word")
        if row:
            sentences.append(TaggedSentence(tuple(row), tuple(map(str, marks))))
    return sentences
