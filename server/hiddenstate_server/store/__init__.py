"""Where sessions are kept when no server runs: one interface, and a store for each kind of URL.

A store is called from one thread, never from the event loop's. Who may write a session is settled by its fence: whoever
claims the session raises it, and what comes later with a lower one is refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

from hiddenstate_server.errors import StartError


class StoreError(Exception):
    """The store failed; the message is one sentence and holds no password.

    Nothing, a part or all of the call was done, each session as a whole. Any call may be repeated.
    """


class Record(NamedTuple):
    """One session as a store keeps it."""

    key: str
    """Tenant, "/", id."""
    fence: int
    """Rises with every claim; the higher one is right."""
    owner: str
    """Who holds the session; empty for nobody."""
    model: str
    version: str
    step: int
    """Observations in the body."""
    rewinds: int
    created: int
    """Nanoseconds since 1970."""
    last_use: float
    """Seconds since 1970."""
    lease: float
    """Seconds the session may be idle."""
    labels: str
    """A JSON object of strings; empty for none."""
    shadow: str
    """The version that is fed along; empty for none."""
    ended: str
    """EXPIRED, CLOSED or EVICTED; empty while the session lives."""
    body: bytes
    """State, outputs and history, packed; empty once ended, and in a page."""
    size: int = 0
    """Bytes of the body, in a page."""

    @property
    def expires(self) -> float:
        """Seconds since 1970."""
        return self.last_use + self.lease

    @property
    def tenant(self) -> str:
        """Empty for none."""
        return self.key.rpartition("/")[0]

    @property
    def id(self) -> str:
        """What clients call it."""
        return self.key.rpartition("/")[2]

    def yields_to(self, newer: Record) -> bool:
        """Whether `newer` may replace it.

        Two servers may create one session at the same moment, with the same fence: the first to write it has it.
        """
        if newer.fence == self.fence:
            return newer.owner in (self.owner, "") or not self.owner
        return newer.fence > self.fence


class Filters(NamedTuple):
    """Which sessions a page is about."""

    model: str = ""
    """Only this model's; empty for all."""
    labels: Mapping[str, str] = {}
    """Only those with all of these."""
    idle_for: float = 0.0
    """Only those idle for at least so many seconds."""


Position = tuple[int, str]
"""Creation in nanoseconds, then key."""


class Store(Protocol):
    """Sessions by key. Any call may raise StoreError, and the same store works again once the cause is gone."""

    shared: bool
    """Others may write to it: what a server remembers must be confirmed before it is used."""

    def write(self, records: Sequence[Record]) -> list[str]:
        """Keeps the records; keys of those refused, because somebody else has claimed the session since."""
        ...

    def claim(self, keys: Sequence[str], owner: str) -> dict[str, Record]:
        """The sessions known. Live ones now belong to `owner`, under the next fence; ended ones stay as they are.

        A lease that ran out is not looked at.
        """
        ...

    def release(self, keys: Sequence[str], owner: str) -> None:
        """Live sessions among these that still are `owner`'s belong to nobody from now on."""
        ...

    def find(self, keys: Sequence[str]) -> dict[str, Record]:
        """The sessions known, live and ended."""
        ...

    def page(
        self, tenant: str, filters: Filters, after: Position = (0, ""), limit: int = 100
    ) -> tuple[list[Record], int]:
        """The tenant's live sessions that match, in the order of their creation, without bodies; how many there are.

        The number is kept up to date for a tenant and a model; for labels and idle time sessions have to be looked at.
        """
        ...

    def live(self) -> int:
        """How many live sessions there are in all."""
        ...

    def expire(self, now: float, grace: float) -> int:
        """Ends sessions whose lease ran out, those that somebody holds `grace` seconds later; how many.

        Their fence rises, so whoever held them cannot write them any more. Where there are very many the call stops
        after a part of a second, and the next one goes on.
        """
        ...

    def prune(self, before: float) -> None:
        """Forgets sessions that ended before this (seconds since 1970); like `expire`, not all at once."""
        ...

    def close(self) -> None:
        """Lets go of files and connections."""
        ...


_MODULES = {"sqlite": "sqlite", "memory": "memory", "redis": "redis", "rediss": "redis"} | {
    f"{scheme}+cluster": "redis" for scheme in ("redis", "rediss")
}
_FORMS = "sqlite:///FILE, redis://HOST:PORT/DB, rediss://..., redis+cluster://HOST:PORT or memory://"


def open_store(url: str) -> Store:
    """The store that a URL names; StartError with one sentence where it cannot be used."""
    parts = split(url)
    try:
        module = importlib.import_module(f"hiddenstate_server.store.{_MODULES[parts.scheme]}")
    except ModuleNotFoundError as error:
        raise StartError(
            f"a store in {parts.scheme} needs the package {error.name}; install hiddenstate[server]"
        ) from error
    store: Store = module.from_url(parts)
    return store


def redacted(url: str) -> str:
    """The URL without user and password, for logs."""
    parts = split(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def split(url: str) -> SplitResult:
    """The parts of a store's URL; StartError where it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise StartError(f"the store's URL is not one: {error}; give {_FORMS}") from None
    if parts.scheme not in _MODULES:
        scheme = repr(parts.scheme) if parts.scheme else "no kind"
        raise StartError(f"the store's URL names {scheme}; give {_FORMS}")
    return parts
