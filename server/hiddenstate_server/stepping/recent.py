"""States close to the present of sessions that go back: who has gone back will go back again, and mostly not far.

Every session can go back from the few states that its history keeps, at the price of many steps. Those that do so get
some more, in places that all sessions share, taken every few steps; they cost nothing to the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiddenstate_server.runtimes import FloatArray, RowArray

STATES = 4
"""Of a session, at a time."""
SPACING = 4
"""Steps between them."""
_ROWS_A_PLACE = 16
_NONE = -1


class Start(NamedTuple):
    """A state [state_size] that a session was in at a step."""

    step: int
    state: FloatArray


class RecentStates:
    """Places for the states of some rows; where there is none left, the row that came first gives up its own."""

    def __init__(self, arena: FloatArray) -> None:
        """`arena` [capacity, state_size]: the states that rows are in."""
        capacity, state_size = arena.shape
        places = -(-capacity // _ROWS_A_PLACE)
        self._arena = arena
        self._place = np.full(capacity, _NONE, np.int32)
        self._row = np.full(places, _NONE, np.int64)
        self._states = np.zeros((places, STATES, state_size), np.float32)
        self._at = np.zeros((places, STATES), np.int64)
        """The step of each state; 0 where there is none."""
        self._taken = 0
        self._next = 0

    def __bool__(self) -> bool:
        return self._taken > 0

    def note(self, rows: RowArray, steps: NDArray[np.int64]) -> None:
        """Rows have just come to these steps [n]; what is due is kept."""
        places = self._place[rows]
        having = places >= 0
        if not having.any():
            return
        rows, steps, places = rows[having], steps[having], places[having]
        due = steps - self._at[places].max(axis=1) >= SPACING
        places = places[due]
        oldest = self._at[places].argmin(axis=1)
        self._states[places, oldest] = self._arena[rows[due]]
        self._at[places, oldest] = steps[due]

    def before(self, row: int, step: int) -> Start | None:
        """The last state kept before a step that the row goes back to. From now on it has a place."""
        place = int(self._place[row])
        if place == _NONE:
            self._give_place(row)
            return None
        self.forget_after(row, step - 1)
        at = self._at[place]
        newest = int(at.argmax())
        return Start(int(at[newest]), self._states[place, newest]) if at[newest] else None

    def forget_after(self, row: int, step: int) -> None:
        """Drops the states that the row was in at later steps."""
        place = int(self._place[row])
        if place != _NONE:
            at = self._at[place]
            at[at > step] = 0

    def clear(self, rows: RowArray) -> None:
        """Takes the places of rows away."""
        if self._taken:
            for place in self._place[rows].tolist():
                if place != _NONE:
                    self._empty(place)

    def _give_place(self, row: int) -> None:
        place = self._next
        self._next = (place + 1) % len(self._row)
        self._empty(place)
        self._row[place], self._place[row] = row, place
        self._taken += 1

    def _empty(self, place: int) -> None:
        row = int(self._row[place])
        if row != _NONE:
            self._place[row] = self._row[place] = _NONE
            self._states[place] = self._at[place] = 0
            self._taken -= 1

    def check_integrity(self, free: RowArray) -> None:
        """Raises AssertionError unless places and rows name each other, and these rows have none."""
        places = np.flatnonzero(self._row != _NONE)
        if len(places) != self._taken or (self._place[self._row[places]] != places).any():
            raise AssertionError("a place for states belongs to no row")
        if (self._place[free] != _NONE).any():
            raise AssertionError("a free row has a place for states")
