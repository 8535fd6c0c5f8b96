"""The words a model of labels knows, and what it reads in place of others."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from hiddenstate_models import spelling
from hiddenstate_models.data import text

SUFFIXES = (3, 2, 0)
"""Lengths of the suffixes that tell spelling classes apart, in the order they are tried."""

_RARE = 2
"""Words seen at most so often stand for those never seen."""
_CLASS_SIZE = 5
"""Rare words that a spelling class must have to be learnt."""


@dataclass(frozen=True)
class Lexicon:
    """Words by token: `<unk>`, `<eos>`, spelling classes, and words themselves."""

    words: tuple[str, ...]
    lowercase: bool
    suffixes: tuple[int, ...]
    """See `spelling.classes`; none: every unknown word is `<unk>`."""

    @classmethod
    def learn(cls, words: Iterable[str], *, size: int, rarest: int, lowercase: bool, suffixes: tuple[int, ...]) -> Self:
        """The most frequent words, at most `size`, that are seen at least `rarest` times, and classes of rare ones."""
        counts = Counter(word.lower() if lowercase else word for word in words)
        rare = [word for word, count in counts.items() if count <= _RARE]
        members = Counter(name for word in rare for name in spelling.classes(word, suffixes))
        classes = sorted(name for name, count in members.items() if count >= _CLASS_SIZE)
        special = [text.UNKNOWN, text.END, *classes]
        known = [word for word, count in counts.most_common() if count >= rarest and word not in special]
        return cls((*special, *known[:size]), lowercase, suffixes)

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, lowercase: bool, suffixes: Sequence[int]) -> Self:
        """As `tokenizer` has it."""
        return cls(tuple(text.vocabulary(tokenizer)), lowercase, tuple(suffixes))

    @property
    def end(self) -> int:
        """The token before a sentence's first word, and after its last where a model looks ahead."""
        return self._ids[text.END]

    @property
    def unknown(self) -> int:
        """The token of words without a class."""
        return self._ids[text.UNKNOWN]

    def tokens(self, words: Iterable[str]) -> npt.NDArray[np.int64]:
        """int64 [n]."""
        if self.lowercase:
            words = [word.lower() for word in words]
        found = [spelling.token(word, self._ids, self.suffixes, self.unknown) for word in words]
        return np.array(found, np.int64)

    def in_place(self) -> npt.NDArray[np.int64]:
        """int64 [words]: what would be read in place of each word if it were unknown; itself if it is no word."""
        ids = dict(self._ids)
        tokens = range(len(self.words))
        special = {self.unknown, self.end}
        return np.array(
            [
                token
                if token in special or self._is_class(word)
                else next((ids[name] for name in spelling.classes(word, self.suffixes) if name in ids), self.unknown)
                for token, word in zip(tokens, self.words, strict=True)
            ],
            np.int64,
        )

    def _is_class(self, word: str) -> bool:
        return len(word) > 2 and word[0] == "<" and word[-1] == ">"

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: token for token, word in enumerate(self.words)}
