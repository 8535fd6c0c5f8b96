"""Keeps a host's sessions in the store: the only place that calls it, in a thread of its own.

One coroutine does everything in turn, what frames wait for first: it calls the store, and applies the answer before it
calls again. So the host never sees answers in another order than the store gave them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import structlog

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server import errors
from hiddenstate_server.allocator import give_back
from hiddenstate_server.sessions import residence
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.sessions.ledger import Chunk, Ledger, Outcome, Sweep, failed, written
from hiddenstate_server.sessions.pace import Pace
from hiddenstate_server.sessions.residence import Known, NeedsRoom, NeedsStore
from hiddenstate_server.stepping.directory import key_of
from hiddenstate_server.stepping.streams import Stream
from hiddenstate_server.store import Filters, Position, Record, Store, StoreError, open_store, redacted

T = TypeVar("T")

log = structlog.get_logger("hiddenstate_server.store")

HELD_GRACE = 60.0
"""Seconds by which the store ends a session later that somebody holds: its holder writes its use only now and then."""
_TEND_SECONDS = 5.0
_CROWD = 10_000
"""Sessions that left memory for the store, after which what they took is given back."""
_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 2.0
_LOOKUPS = 2048
_TICK_SECONDS = 0.001
_ENDINGS_KEPT_SECONDS = 7 * 86_400.0
_CLAIMED_KEPT_SECONDS = 10.0


def new_ledger(every_step: bool, limit: int) -> Ledger:
    """A ledger under a name that no other process has."""
    return Ledger(uuid.uuid4().hex, every_step, limit)


class _Errand(NamedTuple):
    """A call of the store that somebody waits for."""

    function: Callable[[], Any]
    answer: asyncio.Future[Any]


class _Question:
    """What frames wait to know of some keys."""

    def __init__(self, needs: NeedsStore, known: Known) -> None:
        self.needs = needs
        self.known = known
        self.answered = asyncio.Event()


class Keeper:
    """Call `start`, then `run` until cancelled, then `close`."""

    def __init__(self, host: Host, url: str, pace: Pace) -> None:
        assert host.ledger is not None
        self._host = host
        self._ledger = host.ledger
        self._url = url
        self._pace = pace
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._questions: list[_Question] = []
        self._errands: deque[_Errand] = deque()
        self._due = asyncio.Event()
        self._sweep: Sweep | None = None
        self._tended_at = 0.0
        self._failing: str | None = None
        self._retry_at = 0.0
        self._left = 0
        self._retries = 0
        self._since = 0.0
        self.report: Callable[[bool], Awaitable[None]] = _unheard
        """Awaited when the store begins to fail (False) and when it works again (True)."""

    async def start(self) -> None:
        """Opens the store; StartError where it cannot be used."""
        loop = asyncio.get_running_loop()
        self._store: Store = await loop.run_in_executor(self._thread, open_store, self._url)
        self._ledger.shared = self._store.shared
        self._ledger.wake = self._due.set
        log.info("sessions are kept", store=redacted(self._url), shared=self._store.shared)

    # for frames and calls

    async def receive(self, stream: Stream, request: pb.StreamRequest, known: Known | None = None) -> None:
        """Has the host apply a frame, after what it needs has been fetched from the store."""
        asked_at = None
        while True:
            try:
                self._host.receive(stream, request, known)
                break
            except NeedsStore as needs:
                asked_at = asked_at or time.perf_counter()
                known = known or Known()
                await self.ask(needs, known)
            except NeedsRoom as needs:
                if self._failing is None:
                    # Rows become free as soon as the work under way is done, and saved where answers wait for that.
                    await asyncio.sleep(_TICK_SECONDS)
                else:
                    # Nothing leaves the arena while the store fails: what is in it must not wait for the rest.
                    known = known or Known()
                    known.refusals |= dict.fromkeys(needs.keys, _unavailable())
        if asked_at is not None:
            self._host.metrics.store.waited(time.perf_counter() - asked_at)

    async def ask(self, needs: NeedsStore, known: Known) -> None:
        """Has the store asked; `known` says afterwards what it said, StoreUnavailable where it failed."""
        question = _Question(needs, known)
        self._questions.append(question)
        self._due.set()
        await question.answered.wait()

    async def look(self, keys: Sequence[str]) -> dict[str, Record]:
        """Sessions as they are in memory or else in the store, live and ended; StoreUnavailable."""
        found = await self._errand(partial(self._store.find, keys))
        for key in keys:
            if key in self._ledger.unsaved:
                found[key] = self._ledger.unsaved[key].record
        return found

    async def page(self, tenant: str, filters: Filters, after: Position, limit: int) -> tuple[list[Record], int]:
        """A tenant's live sessions in the store after (creation, id), and how many match; StoreUnavailable."""
        start = (after[0], key_of(tenant, after[1]) if after[1] else "")
        return await self._errand(partial(self._store.page, tenant, filters, start, limit))

    async def confirm(self, key: str) -> None:
        """Drops what is remembered of a session that another process has claimed, if the store can be asked."""
        if self._ledger.shared and residence.present(self._host, key):
            with contextlib.suppress(errors.StoreUnavailable):
                residence.drop_stale(self._host, await self._errand(partial(self._store.find, [key])))

    async def fetch(self, key: str) -> None:
        """Brings a session that no other process holds to a row or to memory; why it cannot be had."""
        await self.confirm(key)
        if residence.present(self._host, key):
            return
        record = (await self.look([key])).get(key)
        if record is not None and not record.ended and record.owner not in ("", self._ledger.owner):
            raise errors.SessionElsewhere(f"another server holds session {record.id!r}; connect again to reach it")
        known = Known()
        needs = NeedsStore([key]) if self._ledger.holder(key) is None else NeedsStore(finds=[key])
        await self.ask(needs, known)
        if key in known.refusals:
            raise known.refusals[key]

    async def end(self, keys: Sequence[str]) -> int:
        """Ends sessions that have no row here, whoever holds them; how many lived."""
        known = Known()
        await self.ask(NeedsStore(claims=keys), known)
        return sum(residence.end_without_row(self._host, key) for key in keys if key not in known.refusals)

    async def _errand(self, function: Callable[[], T]) -> T:
        errand = _Errand(function, asyncio.get_running_loop().create_future())
        self._errands.append(errand)
        self._due.set()
        answer: T = await errand.answer
        return answer

    async def saved(self, seconds: float) -> None:
        """Waits until the store has everything that is unsaved now; StoreUnavailable if that takes longer."""
        reached = asyncio.Event()
        self._ledger.when_durable((), reached.set)
        try:
            async with asyncio.timeout(seconds):
                await reached.wait()
        except TimeoutError:
            raise _unavailable() from None

    # the loop

    async def run(self) -> None:
        """Answers questions, saves what is unsaved and tends the store, for ever."""
        while True:
            if self._questions:
                await self._answer()
            elif self._errands:
                await self._run_errand(self._errands.popleft())
            elif self._saving_due():
                await self._save()
            elif self._host.clock() >= self._tended_at + _TEND_SECONDS:
                await self._tend()
            else:
                await self._pause()

    async def _pause(self) -> None:
        self._due.clear()
        now = self._host.clock()
        until_due = max(self._pace.due_in(now), self._retry_at - now)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self._pace.shortest, max(_TICK_SECONDS, until_due))):
                await self._due.wait()

    def _saving_due(self) -> bool:
        now = self._host.clock()
        if now < self._retry_at:
            return False
        if self._sweep is None:
            if not self._ledger.waited_for and self._pace.due_in(now) > 0:
                return False
            self._pace.begin(now)
            self._sweep = self._ledger.sweep(self._host.models, partial(residence.records_of, self._host), now)
        return True

    async def _answer(self) -> None:
        questions, self._questions = self._questions, []
        claims = {key for question in questions for key in question.needs.claims}
        finds = {key for question in questions for key in question.needs.finds}
        try:
            claimed = await self._looked_up(partial(self._store.claim, owner=self._ledger.owner), claims)
            found = await self._looked_up(self._store.find, finds)
        except StoreError as error:
            await self._failed("lookup", error)
            for question in questions:
                keys = [*question.needs.claims, *question.needs.finds]
                question.known.asked.update(keys)
                question.known.refusals |= dict.fromkeys(keys, _unavailable())
                question.answered.set()
            return
        for question in questions:
            residence.adopt_claimed(self._host, claimed, question.needs.claims, question.known)
            residence.adopt_found(self._host, found, question.needs.finds, question.known)
            question.answered.set()

    async def _run_errand(self, errand: _Errand) -> None:
        try:
            answer = await self._call(errand.function)
        except StoreError as error:
            await self._failed("lookup", error)
            if not errand.answer.done():
                errand.answer.set_exception(_unavailable())
        else:
            if not errand.answer.done():
                errand.answer.set_result(answer)

    async def _looked_up(
        self, look_up: Callable[[Sequence[str]], dict[str, Record]], keys: Iterable[str]
    ) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for some in _in_parts(sorted(keys)):
            found |= await self._call(partial(look_up, some))
        return found

    async def _save(self) -> None:
        assert self._sweep is not None
        with self._pace.spending():
            chunk = self._sweep.next()
        if chunk is None:
            sweep, self._sweep = self._sweep, None
            self._ledger.finish(sweep)
            self._pace.end()
        elif not chunk.records:
            await asyncio.sleep(_TICK_SECONDS)
        else:
            await self._write(self._sweep, chunk)

    async def _write(self, sweep: Sweep, chunk: Chunk) -> None:
        start = time.perf_counter()
        try:
            refused = await self._call(partial(self._written, chunk.records))
        except StoreError as error:
            self._sweep = None
            failed(chunk)
            self._ledger.give_up(sweep)
            await self._failed("write", error)
            return
        except BaseException:
            failed(chunk)
            raise
        self._host.metrics.store.wrote(len(chunk.records), time.perf_counter() - start)
        with self._pace.spending():
            outcome = written(self._ledger, chunk, refused)
            self._left += len(outcome.saved)
            residence.apply_saved(self._host, outcome)
        if outcome.lost_keys:
            await self._give_up(outcome)

    def _written(self, records: Sequence[Record]) -> list[str]:
        """In the store's thread."""
        with self._pace.spending():
            return self._store.write(records)

    async def _give_up(self, outcome: Outcome) -> None:
        """Drops what others own; those who hold it are told why."""
        try:
            found = await self._call(partial(self._store.find, outcome.lost_keys))
        except StoreError as error:
            await self._failed("lookup", error)
            found = {}
        residence.apply_lost(self._host, outcome, found)

    async def _tend(self) -> None:
        now = self._host.clock()
        self._tended_at = now
        wall = now + self._host.wall_seconds
        self._ledger.forget_claimed(now - _CLAIMED_KEPT_SECONDS)
        try:
            expired = await self._call(partial(self._store.expire, wall, HELD_GRACE))
            await self._call(partial(self._store.prune, wall - _ENDINGS_KEPT_SECONDS))
            await self._renew()
            stored = await self._call(self._store.live)
            self._ledger.stored = stored + residence.not_stored(self._host)
            if self._left >= _CROWD:
                self._left = 0
                await self._call(give_back)
        except StoreError as error:
            await self._failed("tend", error)
            return
        if expired:
            log.info("sessions expired in the store", sessions=expired)

    async def _renew(self) -> None:
        """Has the store told of leases renewed without an observation, before it takes them to have run out."""
        residence.mark_renewed(self._host, HELD_GRACE / 2)
        renewed = residence.renewed_away(self._host, HELD_GRACE / 2)
        for keys in _in_parts(list(renewed)):
            found = await self._call(partial(self._store.find, keys))
            records = residence.renewals(self._host, found, renewed)
            if records:
                await self._call(partial(self._store.write, records))
                residence.note_renewed(self._host, records)

    # the store

    async def _call(self, function: Callable[[], T]) -> T:
        answer = await asyncio.get_running_loop().run_in_executor(self._thread, function)
        if self._failing is not None:
            log.info("the store works again", unsaved=self.unsaved, seconds=round(self._host.clock() - self._since, 1))
            self._failing, self._retries = None, 0
            self._host.metrics.store.works()
            await self.report(True)
        return answer

    async def _failed(self, what: str, error: StoreError) -> None:
        now = self._host.clock()
        self._host.metrics.store.failed(what)
        self._retry_at = now + min(_RETRY_SECONDS * 2**self._retries, _LONGEST_RETRY_SECONDS)
        self._retries = min(self._retries + 1, 16)
        if self._failing is None:
            self._failing, self._since = str(error), now
            await self.report(False)
        elif self._failing == str(error):
            return
        self._failing = str(error)
        log.error("the store fails; what is not saved is kept and tried again", reason=str(error), unsaved=self.unsaved)

    @property
    def unsaved(self) -> int:
        """Sessions, and endings, that the store does not have as they are."""
        waiting = sum(len(model.table.unsaved_rows()) + int(model.table.writing.sum()) for model in self._host.models)
        return waiting + len(self._ledger.unsaved)

    async def release(self, seconds: float) -> int:
        """Saves everything, giving sessions up to whoever wants them; how many could not be saved in that time."""
        self._ledger.releasing = True
        until = self._host.clock() + seconds
        try:
            await self.saved(seconds)
            for keys in _in_parts(residence.keys_held(self._host)):
                if self._host.clock() < until:
                    await self._errand(partial(self._store.release, keys, self._ledger.owner))
        except errors.StoreUnavailable:
            log.error("the store did not take everything in time", unsaved=self.unsaved)
        return self.unsaved

    async def close(self) -> None:
        """Lets go of the store, after `run` has ended."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
        self._thread.shutdown()


def _unavailable() -> errors.StoreUnavailable:
    return errors.StoreUnavailable("the state store does not answer; try again")


def _in_parts(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    return (keys[start : start + _LOOKUPS] for start in range(0, len(keys), _LOOKUPS))


async def _unheard(_works: bool) -> None:
    """Nobody listens."""
