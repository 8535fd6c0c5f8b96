"""What an experiment is: arms that differ in one thing, each run with several seeds, and what their results show."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = list[tuple[float, float]]
"""Points (update, value)."""
Ending = Literal["solved", "finished", "stuck", "diverged"]
Listener = Callable[[float, str], None]
"""Hears how much of a run is done, 0 to 1, and its latest figures."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train; all its runs differ in the seed alone."""

    name: str
    """Unique in its experiment; names the files of its results."""
    panel: str
    """What it is compared within, such as the length of the sequences."""
    label: str
    """What sets it apart within its panel."""
    settings: Mapping[str, Any]
    """JSON types: everything its runs are told but the seed."""
    published: str = "-"
    """A figure from the literature, with paper and year."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run came to."""

    ended: Ending
    """Solved: good enough to stop early. Stuck: no better than without memory for so long that it was given up.
    Diverged: the loss or its gradient was no finite number any more."""
    updates: int
    scores: dict[str, float]
    curves: dict[str, Curve]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run."""

    arm: str
    seed: int
    settings: dict[str, Any]
    outcome: Outcome
    seconds: float
    """Of processor time; on a GPU, of the processor that drives it."""


@dataclass(frozen=True)
class Group:
    """An arm and the results it has so far."""

    arm: Arm
    results: Sequence[Result]

    def scores(self, name: str) -> list[float]:
        """One score of every seed that has it."""
        return [scores[name] for result in self.results if name in (scores := result.outcome.scores)]

    def ended(self, how: str) -> int:
        """How many seeds ended so."""
        return sum(result.outcome.ended == how for result in self.results)


class Experiment(ABC):
    """One question, asked by several arms."""

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    score: ClassVar[str]
    """The score that the table is about."""
    unit: ClassVar[str]
    """What the score is, for the head of the table."""
    needs: ClassVar[str] = ""
    """Files that --data must name, in words; empty: none."""

    @abstractmethod
    def arms(self, data: Sequence[str], *, quick: bool) -> list[Arm]:
        """Every arm, the most telling first.

        Raises:
            DataError: files that the experiment needs are not among `data`.
        """

    @abstractmethod
    def train(self, settings: Mapping[str, Any], seed: int, listener: Listener) -> Outcome:
        """Runs an arm with one seed."""

    @abstractmethod
    def conclude(self, groups: Sequence[Group]) -> str:
        """What the results show, in a sentence or two made from them alone."""

    @abstractmethod
    def draw(self, groups: Sequence[Group]) -> "Figure":
        """The curves of every run."""
