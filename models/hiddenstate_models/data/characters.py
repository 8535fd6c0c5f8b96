"""Text as characters: the alphabet, and documents as ids."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from hiddenstate_models.data.text import Corpus

_RARE = 5
"""Characters that occur less often share one id."""
_START = "\n"
"""Stands before a document's first character, so that it too is predicted from something."""


def alphabet_of(documents: Sequence[str]) -> str:
    """The characters that are no rarity, by code point."""
    counts = Counter(_START * _RARE)
    for document in documents:
        counts.update(document)
    return "".join(sorted(character for character, count in counts.items() if count >= _RARE))


def encode_characters(documents: Sequence[str], alphabet: str) -> Corpus:
    """Documents as ids: 0 is any character that the alphabet lacks, and 1 to len(alphabet) are its characters."""
    ids = {character: i for i, character in enumerate(alphabet, start=1)}
    pieces = [np.array([ids.get(c, 0) for c in _START + document], np.int32) for document in documents]
    starts = np.cumsum([0, *(len(piece) for piece in pieces[:-1])], dtype=np.int64)
    return Corpus(np.concatenate(pieces), starts)
