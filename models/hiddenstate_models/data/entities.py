"""Entities marked in the tags of a sentence: B-TYPE at the first word, I-TYPE at the others, O outside."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"
"""The tag of words that belong to no entity."""

_ENTITY = re.compile(r"[BIESLU]-.+")


class Entity(NamedTuple):
    """Words start to end (not included) of a sentence, and what they are."""

    start: int
    end: int
    kind: str


class EntityCounts(NamedTuple):
    """How many entities there are, were found, and were found rightly."""

    expected: int = 0
    found: int = 0
    right: int = 0

    @staticmethod
    def of(expected: Iterable[Sequence[str]], found: Iterable[Sequence[str]]) -> "EntityCounts":
        """Of sentences' tags; an entity is right if its first and last word and its kind are (Tjong Kim Sang, 2003)."""
        pairs = [(set(entities(one)), set(entities(other))) for one, other in zip(expected, found, strict=True)]
        return EntityCounts(
            sum(len(one) for one, _ in pairs),
            sum(len(other) for _, other in pairs),
            sum(len(one & other) for one, other in pairs),
        )

    @property
    def precision(self) -> float:
        """Share of those found that is right; 0 where none was found."""
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Share of those expected that was found; 0 where there is none."""
        return self.right / self.expected if self.expected else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where nothing is right."""
        return 2 * self.right / (self.expected + self.found) if self.right else 0.0


def marks_entities(tags: Iterable[str]) -> bool:
    """Whether these tags mark entities, not words one by one."""
    kinds = set(tags) - {OUTSIDE}
    return bool(kinds) and all(map(_ENTITY.fullmatch, kinds))


def iob2(tags: Sequence[str]) -> list[str]:
    """Entities marked in any of the usual ways (IOB1, IOB2, BIOES, BILOU) as IOB2."""
    marked, previous = [], OUTSIDE
    for tag in tags:
        if tag == OUTSIDE:
            marked.append(tag)
        else:
            kind = tag[2:]
            continues = tag[0] in "IEL" and previous[0] in "BI" and previous[2:] == kind
            marked.append(f"I-{kind}" if continues else f"B-{kind}")
        previous = tag
    return marked


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities that a sentence's tags mark, in order; an I- that continues nothing begins one."""
    found: list[Entity] = []
    for i, tag in enumerate(iob2(tags)):
        if tag == OUTSIDE:
            continue
        if tag[0] == "I":
            found[-1] = found[-1]._replace(end=i + 1)
        else:
            found.append(Entity(i, i + 1, tag[2:]))
    return found


def may_follow(tag: str, before: str | None) -> bool:
    """Whether a tag may come after another, or (None) at a sentence's beginning: nothing but B- and I- leads to I-."""
    return not tag.startswith("I-") or (before is not None and before != OUTSIDE and before[2:] == tag[2:])
