"""What `hiddenstate-models tag` does: labels words of plain text or of columns, whole sentences at once."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from hiddenstate_models.data.labelled import TAGGED_WORD_PATTERN, TaggedSentence
from hiddenstate_models.errors import DataError
from hiddenstate_models.evaluation.labels import tags
from hiddenstate_models.evaluation.sources import load_labeller

_BATCH = 256
"""Sentences tagged at a time."""


def tag(source: Path, lines: Iterable[str], out: TextIO, *, columns: bool) -> int:
    """Writes a word and its tag a line, a tab between them and a blank line after every sentence; returns their number.

    lines are sentences of plain text, or with `columns` a word each (its first column) and blank between sentences.

    Raises:
        DataError: source holds no model that tags words.
    """
    labeller = load_labeller(source)
    if labeller.network.config.task != "tagging":
        raise DataError(f"{source} labels whole texts; name a model that tags words")
    count = 0
    for sentences in _batches(_from_columns(lines) if columns else _from_text(lines)):
        for sentence, found in zip(sentences, tags(labeller, sentences), strict=True):
            pairs = zip(sentence.words, found, strict=True)
            out.write("".join(f"{word}\t{tag}\n" for word, tag in pairs) + "\n")
        out.flush()
        count += len(sentences)
    return count


def _from_text(lines: Iterable[str]) -> Iterator[Sequence[str]]:
    pattern = re.compile(TAGGED_WORD_PATTERN)
    return (words for line in lines if (words := pattern.findall(line)))


def _from_columns(lines: Iterable[str]) -> Iterator[Sequence[str]]:
    words: list[str] = []
    for line in lines:
        fields = line.split("\t") if "\t" in line else line.split()
        if line.strip():
            words.append(fields[0].strip())
        elif words:
            yield words
            words = []
    if words:
        yield words


def _batches(sentences: Iterable[Sequence[str]]) -> Iterator[list[TaggedSentence]]:
    batch: list[TaggedSentence] = []
    for words in sentences:
        batch.append(TaggedSentence(tuple(words), ("",) * len(words)))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
