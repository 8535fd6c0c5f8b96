"""Next characters, as a task of the ordinary training loop: its sequences are long and its output layer is small."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hiddenstate_models.data import sources
from hiddenstate_models.data.characters import alphabet_of, encode_characters
from hiddenstate_models.data.columns import text_of
from hiddenstate_models.networks.words import NextWordConfig, NextWordNetwork
from hiddenstate_models.training.cell_options import CellFlags
from hiddenstate_models.training.next_word import NextWordOptions, NextWordTask
from hiddenstate_models.training.options import option
from hiddenstate_models.training.recipe import Prepared, Recipe, Told

_HELD_OUT = 20
"""Without validation files the last such part of every document is held out."""


@dataclass(frozen=True, kw_only=True)
class CharacterOptions(CellFlags):
    """Settings of a next-character run."""

    embedding: int = option(32, "Size of the character embedding.")
    limit: int = option(0, "Characters to read at most; 0: all.")


def _prepare(told: Told[CharacterOptions], _resumed: Path | None) -> Prepared:
    options = told.settings
    documents = _read(told.data, options.limit)
    if told.valid:
        training, validation = documents, _read(told.valid, options.limit)
    else:
        ends = [len(document) - len(document) // _HELD_OUT for document in documents]
        training = [document[:end] for document, end in zip(documents, ends, strict=True)]
        validation = [document[end:] for document, end in zip(documents, ends, strict=True)]
    alphabet = alphabet_of(training)
    size = len(alphabet) + 1
    config = NextWordConfig(**options.cells(), vocabulary_size=size, embedding_size=options.embedding, tied=False)
    corpus, held_out = encode_characters(training, alphabet), encode_characters(validation, alphabet)
    task = NextWordTask(corpus, held_out, size, told.training, NextWordOptions(output="full"))
    facts = {"characters an epoch": task.lanes.steps_per_epoch, "alphabet": size}
    return Prepared(NextWordNetwork(config), config.to_dict(), task, facts)


def _read(patterns: Sequence[str], limit: int) -> list[str]:
    """Files as text, no more characters than `limit` altogether."""
    documents = []
    left = limit or None
    for source in sources.expand(patterns):
        document = text_of(source)[:left]
        documents.append(document)
        if left is not None:
            left -= len(document)
            if not left:
                break
    return documents


CHARACTERS = Recipe(
    task="next-character",
    settings=CharacterOptions,
    group="characters",
    unit="characters",
    prepare=_prepare,
    help="Train a next-character model on text.",
    reads="Text files or globs to learn from; repeatable.",
    holds_out="Text to validate on; without it, the last twentieth of every document.",
)
