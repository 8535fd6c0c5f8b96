"""Spelling classes: what a vocabulary can hold in the place of words that it does not know.

A class is called by a word's shape and its last letters: "Johnson" belongs to `<Aa-son>`, `<Aa-on>` and `<Aa>`. Shapes
are those of Collins (2002): every run of capitals is `A`, of other letters `a`, of digits `0`; the rest stays.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby


def shape(word: str) -> str:
    """Capitals, small letters and digits of a word, run by run: "1996-08-22" is "0-0-0"."""
    return "".join(kind for kind, _ in groupby(map(_kind, word)))


def classes(word: str, suffixes: Sequence[int]) -> Iterator[str]:
    """The names of the word's classes, one for each length in `suffixes` that the word has so many last letters for.

    A suffix is lower-cased and shorter than the word; length 0 is the shape alone.
    """
    for length in suffixes:
        if length == 0:
            yield f"<{shape(word)}>"
        elif len(word) > length and word[-length:].isalpha():
            yield f"<{shape(word)}-{word[-length:].lower()}>"


def token(word: str, ids: Mapping[str, int], suffixes: Sequence[int], unknown: int) -> int:
    """The word's token, else that of its first class which there is one for, else the unknown token."""
    known = ids.get(word)
    if known is not None:
        return known
    return next((ids[name] for name in classes(word, suffixes) if name in ids), unknown)


def _kind(character: str) -> str:
    if character.isalpha():
        return "A" if character.isupper() else "a"
    return "0" if character.isdigit() else character
