"""Sessions in this process's memory: for tests, and for what need not outlive the process."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from urllib.parse import SplitResult

from hiddenstate_server.store import Filters, Position, Record


def from_url(parts: SplitResult) -> MemoryStore:  # noqa: ARG001
    """An empty one."""
    return MemoryStore()


class MemoryStore:
    """A dictionary of records."""

    shared = False

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._ended: dict[str, float] = {}
        """When sessions ended, seconds since 1970."""

    def write(self, records: Sequence[Record]) -> list[str]:
        refused = []
        for record in records:
            stored = self._records.get(record.key)
            if stored is None or stored.yields_to(record):
                self._put(record)
            else:
                refused.append(record.key)
        return refused

    def claim(self, keys: Sequence[str], owner: str) -> dict[str, Record]:
        for key, record in self.find(keys).items():
            if not record.ended:
                self._records[key] = record._replace(owner=owner, fence=record.fence + 1)
        return self.find(keys)

    def release(self, keys: Sequence[str], owner: str) -> None:
        for key, record in self.find(keys).items():
            if not record.ended and record.owner == owner:
                self._records[key] = record._replace(owner="")

    def find(self, keys: Sequence[str]) -> dict[str, Record]:
        return {key: self._records[key] for key in keys if key in self._records}

    def page(
        self, tenant: str, filters: Filters, after: Position = (0, ""), limit: int = 100
    ) -> tuple[list[Record], int]:
        used_by = time.time() - filters.idle_for if filters.idle_for else math.inf
        matching = [
            record
            for record in self._records.values()
            if not record.ended
            and record.tenant == tenant
            and filters.model in ("", record.model)
            and record.last_use <= used_by
            and filters.labels.items() <= json.loads(record.labels or "{}").items()
        ]
        matching.sort(key=lambda record: (record.created, record.key))
        following = [record for record in matching if (record.created, record.key) > after][:limit]
        return [record._replace(body=b"", size=len(record.body)) for record in following], len(matching)

    def live(self) -> int:
        return sum(not record.ended for record in self._records.values())

    def expire(self, now: float, grace: float) -> int:
        due = [
            record
            for record in self._records.values()
            if not record.ended and record.expires + (grace if record.owner else 0.0) <= now
        ]
        for record in due:
            self._put(record._replace(fence=record.fence + 1, owner="", ended="EXPIRED", body=b""))
        return len(due)

    def prune(self, before: float) -> None:
        for key in [key for key, ended in self._ended.items() if ended < before]:
            del self._records[key], self._ended[key]

    def close(self) -> None:
        self._records.clear()
        self._ended.clear()

    def _put(self, record: Record) -> None:
        self._records[record.key] = record
        if record.ended:
            self._ended.setdefault(record.key, time.time())
        else:
            self._ended.pop(record.key, None)
