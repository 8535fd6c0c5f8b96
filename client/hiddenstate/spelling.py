"""Spelling classes, by which a model tells words apart that it does not know; the `.proto` says how at `Text`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby


def classes(word: str, suffixes: Sequence[int]) -> Iterator[str]:
    """Names of the word's classes, in the order to be looked up."""
    shape = "".join(kind for kind, _ in groupby(map(_kind, word)))
    for length in suffixes:
        if length == 0:
            yield f"<{shape}>"
        elif len(word) > length and word[-length:].isalpha():
            yield f"<{shape}-{word[-length:].lower()}>"


def _kind(character: str) -> str:
    if character.isalpha():
        return "A" if character.isupper() else "a"
    return "0" if character.isdigit() else character
