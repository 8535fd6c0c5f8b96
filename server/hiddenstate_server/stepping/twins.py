"""Rows that follow sessions in another version of their model: fed what the session observes, answering nobody.

A twin is an ordinary row of its model but for two things: no stream holds it, and it has no key. It is fed what is
already in its session's state, so it is never ahead; as in any row, its work stands in a chain of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hiddenstate_server import errors
from hiddenstate_server.runtimes import FloatArray, InputArray, RowArray
from hiddenstate_server.stepping.scheduler import CATCH_UP, OBSERVE, REWIND, runs_of

if TYPE_CHECKING:
    from hiddenstate_server.stepping.model import ModelInfo, ServedModel


@dataclass(eq=False)
class Twin:
    """A row of `model` that follows a session of another version."""

    model: ServedModel
    row: int
    translation: NDArray[np.int64] | None
    """The twin's token for each of its session's; None where they are the same."""
    compared: bool
    """Its surprise is recorded beside the session's."""
    lost: errors.ServerError | None = None
    """Why it has no row any more."""

    @property
    def caught_up(self) -> bool:
        """Whether everything it was fed is in its state."""
        return not self.model.scheduler.pending[self.row]

    def feed(self, inputs: InputArray, flags: int, now: float) -> None:
        """Queues observations [n, ...] of the session."""
        rows = np.full(len(inputs), self.row, np.int64)
        self.model.table.accepted[self.row] += len(inputs)
        self.model.scheduler.add(rows, self.translated(inputs), flags, now, runs_of(rows))

    def translated(self, inputs: InputArray) -> InputArray:
        """The session's inputs as the twin's model has them."""
        return inputs if self.translation is None else self.translation[inputs]

    def release(self) -> None:
        """Gives the row back."""
        if self.lost is None:
            self.model.release_twins([self.row], errors.InternalError("the twin is not needed any more"))


def check_related(source: ModelInfo, target: ModelInfo) -> None:
    """InputInvalid unless the one takes what the other observes."""
    if (source.task, source.columns, source.notes) != (target.task, target.columns, target.notes):
        raise errors.InputInvalid(f"{target} observes something else than {source}; open a new session with it")
    if source.labels != target.labels:
        raise errors.InputInvalid(f"{target} has other labels than {source}; open a new session with it")


def translation(source: ModelInfo, target: ModelInfo) -> NDArray[np.int64] | None:
    """The target's token for each of the source's, by their text; None where they are the same."""
    if source.text is None or target.text is None or source.text.vocabulary == target.text.vocabulary:
        return None
    tokens = target.text.tokens(source.text.vocabulary)
    tokens[source.text.unknown_token] = target.text.unknown_token
    tokens[source.text.end_token] = target.text.end_token
    return tokens


def start_shadows(model: ServedModel, rows: RowArray, shadow: ServedModel, now: float) -> None:
    """Has another version follow sessions, fed with what is kept of their observations, as far as it has room."""
    rows = rows[: shadow.arena.free]
    if len(rows):
        twins = model.followers.start(rows, shadow, compared=True, now=now)
        for row, twin in zip(rows.tolist(), twins, strict=True):
            model.followers.lead(row, twin)


class Followers:
    """The twins of one model's sessions, wherever they are: at most one that goes along, and one to move to."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._along: dict[int, Twin] = {}
        self._followed = np.zeros(model.capacity, np.bool_)
        self._ahead: dict[int, Twin] = {}
        self._translations: dict[int, NDArray[np.int64] | None] = {}

    def __bool__(self) -> bool:
        return bool(self._along)

    def __iter__(self) -> Iterator[Twin]:
        """All that have a row."""
        twins = (*self._along.values(), *self._ahead.values())
        return (twin for twin in twins if twin.lost is None)

    def start(self, rows: RowArray, target: ServedModel, *, compared: bool, now: float) -> list[Twin]:
        """Twins fed with what is kept of the sessions' observations; the caller has checked that there is room."""
        source, tokens = self._model, self.translation(target)
        twins = []
        for row, new in zip(rows.tolist(), target.allocate_twins(len(rows)).tolist(), strict=True):
            twin = Twin(target, new, tokens, compared)
            target.twins[new] = twin
            inputs = source.history.recent(row)
            target.table.applied[new] = target.table.accepted[new] = source.table.applied[row] - len(inputs)
            if target.table.applied[new]:
                target.history.start(new, int(target.table.applied[new]))
            if len(inputs):
                twin.feed(inputs, OBSERVE | CATCH_UP, now)
            twins.append(twin)
        return twins

    def translation(self, target: ServedModel) -> NDArray[np.int64] | None:
        """The target's token for each of the sessions'; None where they are the same."""
        if target.base not in self._translations:
            self._translations[target.base] = translation(self._model.info, target.info)
        return self._translations[target.base]

    # going along

    def along(self, row: int) -> Twin | None:
        """The twin that goes along with a session."""
        twin = self._along.get(row)
        return None if twin is None or twin.lost is not None else twin

    def shadow_version(self, row: int) -> str:
        """The version whose surprise is compared with the session's; empty for none."""
        twin = self.along(row)
        return twin.model.info.version if twin is not None and twin.compared else ""

    def lead(self, row: int, twin: Twin) -> None:
        """Has a twin fed everything that the session observes from now on, in place of the one before."""
        self._leave(row)
        self._along[row] = twin
        self._followed[row] = True

    def follow(self, rows: RowArray, inputs: InputArray, surprises: FloatArray, now: float) -> None:
        """Feeds observations just applied, of distinct rows, to the twins that go along."""
        places = np.flatnonzero(self._followed[rows])
        by_model: defaultdict[tuple[ServedModel, bool], list[tuple[int, Twin]]] = defaultdict(list)
        for place in places.tolist():
            twin = self._kept_up(int(rows[place]), now)
            if twin is not None:
                by_model[twin.model, twin.compared].append((place, twin))
        for (model, compared), pairs in by_model.items():
            at = np.array([place for place, _ in pairs])
            twins = np.array([twin.row for _, twin in pairs])
            model.table.accepted[twins] += 1
            fed = pairs[0][1].translated(inputs[at])
            model.scheduler.add(twins, fed, OBSERVE if compared else OBSERVE | CATCH_UP, now)
            if compared:
                self._model.metrics.compared("primary", surprises[at])

    def _kept_up(self, row: int, now: float) -> Twin | None:
        """The row's twin, begun anew if it is too far behind; None if it was lost."""
        twin = self._along[row]
        if twin.lost is not None:
            self._leave(row)
            return None
        if twin.model.scheduler.pending[twin.row] < twin.model.backlogs.session:
            return twin
        self._begin_anew(row, now)
        return None  # what was just applied is in what it was fed

    def _begin_anew(self, row: int, now: float) -> None:
        twin = self._along[row]
        twin.release()
        (again,) = self.start(np.array([row]), twin.model, compared=twin.compared, now=now)
        self.lead(row, again)

    def went_back(self, row: int, step: int, now: float) -> None:
        """Has the twin of a session that is at an earlier step again go back, too."""
        twin = self.along(row)
        if twin is None:
            return
        try:
            twin.model.rewinding.accept(twin.row, step, None)
        except errors.RewindLimit:
            self._begin_anew(row, now)
        else:
            twin.model.scheduler.add(np.array([twin.row]), None, REWIND, now)

    # moving ahead

    def ahead(self, row: int) -> Twin | None:
        """The twin a session waits for, to move to."""
        return self._ahead.get(row)

    def wait_for(self, row: int, twin: Twin) -> None:
        """Notes the twin a session is to move to."""
        self._ahead[row] = twin

    def move(self, row: int, twin: Twin, new: Followers) -> None:
        """The session has moved to its twin's row; a shadow in a third version goes on following it there."""
        self._ahead.pop(row, None)
        along = self.along(row)
        if along is not None and along is not twin and along.model is not twin.model:
            # A shadow's tokens are translated from those of the version that its session is in.
            along.translation = new.translation(along.model)
            self._forget(row)
            new.lead(twin.row, along)
        elif along is twin:
            self._forget(row)

    # endings

    def abandon(self, rows: Iterable[int]) -> None:
        """Gives up what sessions wait for."""
        if self._ahead:
            for row in rows:
                twin = self._ahead.pop(row, None)
                if twin is not None:
                    twin.release()

    def end(self, rows: Iterable[int]) -> None:
        """The sessions are gone, and their twins with them."""
        self.abandon(rows)
        if self._along:
            for row in rows:
                self._leave(row)

    def _leave(self, row: int) -> None:
        twin = self._along.get(row)
        if twin is not None:
            twin.release()
            self._forget(row)

    def _forget(self, row: int) -> None:
        del self._along[row]
        self._followed[row] = False

    def check_integrity(self) -> None:
        """Raises AssertionError unless every twin is where its model has it, as far as its session."""
        if set(np.flatnonzero(self._followed).tolist()) != self._along.keys():
            raise AssertionError("a session is followed by no twin, or the other way round")
        for twin in self:
            if twin.model.twins.get(twin.row) is not twin:
                raise AssertionError("a twin has no row")
        for row, twin in self._along.items():
            behind = self._model.table.applied[row] - twin.model.table.accepted[twin.row]
            if twin.lost is None and behind and not self._model.table.replaying[row]:
                raise AssertionError(f"a twin was not fed {behind} of its session's observations")
