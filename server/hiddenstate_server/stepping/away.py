"""Sessions that a stream holds and that have no row: what is known of them while their state is in the store."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hiddenstate_server.runtimes import RowArray

_COLUMNS = ("used", "lease", "stored_use", "durable", "base")


class Away:
    """Columns by handle. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._count = 0
        self.used = np.zeros(0)
        self.lease = np.zeros(0)
        """Seconds; 0 where the handle's session is not away."""
        self.stored_use = np.zeros(0)
        """The last use the store knows of."""
        self.durable = np.zeros(0, np.int64)
        """Observations in the state that the store has."""
        self.base = np.zeros(0, np.int64)
        """Of the session's model."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Handles and keys."""
        return ((handle, key) for handle, key in enumerate(self._keys) if key)

    def handles(self) -> RowArray:
        """Handles of all."""
        return np.flatnonzero(self.lease > 0)

    def key(self, handle: int) -> str:
        """The key of a session that is away."""
        return self._keys[handle]

    def put(self, handle: int, key: str, used: float, lease: float, stored_use: float, durable: int, base: int) -> None:
        """Notes a session that gave up its row, or was resumed without one."""
        if handle >= len(self._keys):
            self._grow(max(2 * len(self._keys), handle + 1))
        self._count += not self._keys[handle]
        self._keys[handle] = key
        self.used[handle], self.lease[handle], self.stored_use[handle] = used, lease, stored_use
        self.durable[handle], self.base[handle] = durable, base

    def ends(self, base: int) -> float:
        """When the last of this model's sessions ends unless it is used; minus infinity if there is none."""
        mine = (self.lease > 0) & (self.base == base)
        return float((self.used + self.lease)[mine].max(initial=-np.inf))

    def _grow(self, size: int) -> None:
        more = size - len(self._keys)
        self._keys.extend([""] * more)
        for name in _COLUMNS:
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros(more, column.dtype)]))

    def take(self, handle: int) -> tuple[str, float]:
        """Forgets a session that has a row again, or has left; its key and when it was last used."""
        key, self._keys[handle] = self._keys[handle], ""
        self._count -= 1
        used = self.used.item(handle)
        for name in _COLUMNS:
            getattr(self, name)[handle] = 0
        return key, used

    def expired(self, now: float) -> RowArray:
        """Handles whose lease has run out."""
        return np.flatnonzero((self.lease > 0) & (self.used + self.lease <= now))

    def renewed(self, least: float) -> RowArray:
        """Handles used later than the store knows: by a quarter of their lease, and by so many seconds."""
        later = self.used - self.stored_use
        return np.flatnonzero((self.lease > 0) & (later > np.maximum(self.lease / 4, least)))
