"""Where each session is, as numbers by handle."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# why nothing new is sent for a session
UNOPENED, STALLED, HELD, CATCHING_UP, MOVED = 1, 2, 4, 8, 16


class Marks:
    """Arrays indexed by handle, so that a frame of thousands of rows costs a few array operations."""

    def __init__(self) -> None:
        self.gate = np.zeros(0, np.uint8)
        """0 where new things can be sent, else why not."""
        self.step = np.zeros(0, np.int64)
        """Last step answered."""
        self.next = np.zeros(0, np.int64)
        """Next step to send."""
        self.seen = np.zeros(0, np.int64)
        """Last step answered on this connection, while there are replays."""
        self.durable = np.zeros(0, np.int64)
        """Last step that is safe in the server's store."""
        self.base = np.zeros(0, np.int64)
        """Later steps were sent by this client."""
        self.lasting = np.zeros(0, bool)
        """Whether the server ever makes anything safe."""
        self.phase = np.zeros(0, np.uint8)
        """Kind of question taken in the current round of sending."""
        self.scratch = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.step)

    def grow(self, size: int) -> None:
        """Makes place for handles below `size`."""
        for name, old in list(vars(self).items()):
            new = np.zeros(size, old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)

    def begin(self, handle: int) -> None:
        """For a session that is to be opened."""
        for marks in (self.step, self.seen, self.durable, self.base):
            marks[handle] = 0
        self.next[handle] = 1
        self.gate[handle] = UNOPENED
        self.lasting[handle] = False

    def close(self, handle: int, why: int) -> None:
        """Lets nothing new be sent, for this reason."""
        self.gate[handle] |= why

    def open(self, handle: int, why: int) -> None:
        """This is no reason any more."""
        self.gate[handle] &= ~np.uint8(why)

    def kept(self, handle: int) -> int:
        """Up to this step nothing of the session is kept."""
        answered = int(self.step[handle])
        safe = min(int(self.durable[handle]), answered) if self.lasting[handle] else answered
        return max(int(self.base[handle]), safe)

    def span(self) -> tuple[Array, Array]:
        """As `kept` and the next steps, by handle: what lies between is kept."""
        safe = np.where(self.lasting, np.minimum(self.durable, self.step), self.step)
        return np.maximum(self.base, safe), self.next

    def note_durable(self, handles: Array, packed: bytes) -> None:
        """For answers that may come out of order with rewinds."""
        if not packed:
            return
        known = handles < len(self.next)
        rows = handles[known]
        steps = np.minimum(np.frombuffer(packed, "<u8").astype(np.int64)[known], self.next[rows] - 1)
        self.durable[rows] = np.maximum(self.durable[rows], steps)
