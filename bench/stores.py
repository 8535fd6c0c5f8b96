"""What it costs to keep sessions in a store: `python -m bench.stores sqlite:////tmp/sessions.db --sessions 1000000`.

The store should be an empty one. Sessions are written and read in batches of 2,000, once while nothing else runs in the
process and once beside a thread that is always busy, as the event loop of a loaded server is. How long that thread
waits is how long the store holds the interpreter's lock.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.report import table
from hiddenstate_server.store import Filters, Position, Record, Store, open_store, redacted

BATCH = 2_000
WRITTEN_BESIDE = 20_000


class Sessions:
    """Sessions of one size in one store."""

    def __init__(self, store: Store, size: int, count: int) -> None:
        self._store, self._size = store, size
        self.tenant = f"bench-{size}"
        # In no order that an index would like.
        self._keys = [f"{self.tenant}/{number * 7_919 % count:032}" for number in range(count)]
        self._step = 0
        self._last: Position = (0, "")

    def write(self, count: int) -> None:
        """Writes the first ones, a step further."""
        self._step += 1
        for start in range(0, count, BATCH):
            now, body = time.time(), os.urandom(self._size)
            self._store.write(
                [
                    Record(key, 1, "bench", "gru", "1", self._step, 0, start + n, now, 3600.0, "", "", "", body)
                    for n, key in enumerate(self._keys[start : min(start + BATCH, count)])
                ]
            )

    def claim(self, count: int) -> None:
        """Claims the first ones and releases them."""
        for start in range(0, count, BATCH):
            claimed = self._store.claim(self._keys[start : min(start + BATCH, count)], "other").values()
            self._store.write([record._replace(owner="") for record in claimed])

    def page(self, filters: Filters) -> None:
        """A page from the middle on."""
        self._store.page(self.tenant, filters, (len(self._keys) // 2, ""), 100)


def main(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="Stores to measure.")],
    size: Annotated[list[int] | None, typer.Option(help="Bytes of a body; may be given again.")] = None,
    sessions: Annotated[int, typer.Option(help="Sessions of each size.", min=BATCH)] = 100_000,
) -> None:
    """Measures how fast stores take and give sessions, and what they take of the interpreter meanwhile."""
    rows = []
    for url in urls:
        for its_size in size or [312, 4096]:
            rows += [
                [redacted(url).partition(":")[0], f"{its_size} B", *row] for row in _measured(url, its_size, sessions)
            ]
    Console().print(table(["store", "body", "what", "alone", "interpreter held"], rows))


def _measured(url: str, size: int, count: int) -> Iterator[list[str]]:
    store = open_store(url)
    kept, few = Sessions(store, size, count), min(count, WRITTEN_BESIDE)
    for what, work, units in (
        ("create", lambda: kept.write(count), count),
        ("write", lambda: kept.write(few), few),
        ("claim and release", lambda: kept.claim(few), few),
    ):
        alone = _seconds(work)
        held = "" if what == "create" else f"{_withheld(work) / units * 1e6:.1f} us each"
        yield [what, f"{units / alone:,.0f}/s", held]
    store.close()
    opening = _seconds(lambda: open_store(url).close())
    store = open_store(url)
    kept = Sessions(store, size, count)
    for what, call in (
        ("page", lambda: kept.page(Filters())),
        ("page by idle time", lambda: kept.page(Filters(idle_for=1e-6))),
        ("expire, none due", lambda: store.expire(time.time(), 60.0)),
    ):
        yield [what, f"{_seconds(call) * 1e3:.1f} ms", ""]
    yield ["open", f"{opening * 1e3:.1f} ms", ""]
    store.close()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _withheld(work: Callable[[], object]) -> float:
    """Seconds that a busy thread beside the work waits for the interpreter, and not for a processor."""
    done, waited = threading.Event(), 0.0

    def busy() -> None:
        nonlocal waited
        started, had = time.perf_counter(), _scheduled()
        while not done.is_set():
            pass
        waited = time.perf_counter() - started - (_scheduled() - had)

    thread = threading.Thread(target=busy)
    thread.start()
    work()
    done.set()
    thread.join()
    return waited


def _scheduled() -> float:
    """Seconds this thread ran or waited for a processor."""
    ran, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return (int(ran) + int(waited)) / 1e9


if __name__ == "__main__":
    typer.run(main)
