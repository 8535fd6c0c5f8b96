"""What may happen to a session while the store is being told of it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from tests.server import wire
from tests.server.doubles import WORDS, Clock, MixingWords, drained

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.sessions import residence
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.sessions.keeper import new_ledger
from hiddenstate_server.sessions.ledger import Chunk, Outcome, Sweep, failed, written
from hiddenstate_server.sessions.residence import Known, NeedsStore
from hiddenstate_server.store import Record
from hiddenstate_server.store.memory import MemoryStore


class Keeping:
    """A host with two sessions of one stream, and every step of keeping them done by hand."""

    def __init__(self, *, every_step: bool = False) -> None:
        self.clock = Clock()
        self.ledger = new_ledger(every_step, 8)
        self.host = Host(Limits(max_sessions=4), Metrics("test"), self.clock, self.ledger)
        self.model = self.host.add_model(WORDS, MixingWords(), max_batch=4)
        self.table = self.model.table
        self.store = MemoryStore()
        self.stream = self.host.connect()
        self.receive(wire.opening([0, 1], "words", ids=["a", "b"]))

    def receive(self, frame: pb.StreamRequest) -> None:
        known = Known()
        while True:
            try:
                self.host.receive(self.stream, frame, known)
                break
            except NeedsStore as needs:
                residence.adopt_claimed(
                    self.host, self.store.claim(needs.claims, self.ledger.owner), needs.claims, known
                )
                residence.adopt_found(self.host, self.store.find(needs.finds), needs.finds, known)
        while self.host.ready:
            self.host.tick()

    def replies(self) -> wire.Replies:
        return drained(self.stream, now=self.clock())

    def sweep(self) -> Sweep:
        return self.ledger.sweep(self.host.models, partial(residence.records_of, self.host), self.clock())

    def chunk(self) -> Chunk:
        chunk = self.sweep().next()
        assert chunk is not None
        return chunk

    def write(self, chunk: Chunk) -> Outcome:
        return written(self.ledger, chunk, self.store.write(chunk.records))

    def save(self) -> None:
        sweep = self.sweep()
        while (chunk := sweep.next()) is not None:
            assert not self.write(chunk).lost_keys
        self.ledger.finish(sweep)

    def row(self, name: str) -> int:
        place = self.host.directory.get(f"/{name}")
        assert place is not None
        return place.row

    def evict(self, name: str) -> None:
        residence.evict(self.host, self.model, np.array([self.row(name)]), "room")

    def stored(self, name: str) -> Record:
        return self.store.find([f"/{name}"])[f"/{name}"]


@pytest.fixture
def keeping() -> Keeping:
    return Keeping()


def test_what_changes_during_a_write_is_written_again(keeping: Keeping) -> None:
    keeping.receive(wire.words([0], [3]))
    chunk = keeping.chunk()
    keeping.receive(wire.words([0], [4]))
    keeping.write(chunk)
    assert keeping.table.durable[keeping.row("a")] == 1
    assert keeping.table.unsaved[keeping.row("a")]
    keeping.save()
    assert keeping.stored("a").step == keeping.table.durable[keeping.row("a")] == 2


def test_going_back_during_a_write_makes_nothing_durable(keeping: Keeping) -> None:
    keeping.receive(wire.words([0, 0, 0], [3, 4, 5]))
    chunk = keeping.chunk()
    keeping.receive(wire.rewind([0], [1]))
    keeping.receive(wire.words([0, 0], [6, 7]))
    keeping.write(chunk)
    assert keeping.table.durable[keeping.row("a")] == 0
    keeping.save()
    assert keeping.table.durable[keeping.row("a")] == 3
    assert keeping.stored("a").rewinds == 1


def test_a_row_that_is_somebody_elses_during_a_write_is_left_alone(keeping: Keeping) -> None:
    keeping.receive(wire.words([0], [3]))
    chunk, row = keeping.chunk(), keeping.row("a")
    keeping.receive(wire.close([0]))
    keeping.receive(wire.opening([2], "words", ids=["c"]))
    assert keeping.row("c") == row
    keeping.write(chunk)
    assert (keeping.table.durable[row], keeping.table.stored[row], keeping.table.unsaved[row]) == (0, False, True)
    keeping.save()
    assert (keeping.stored("a").ended, keeping.stored("c").step) == ("CLOSED", 0)


def test_packed_up_during_a_write(keeping: Keeping) -> None:
    keeping.save()
    keeping.receive(wire.words([0], [3]))
    chunk = keeping.chunk()
    keeping.evict("a")
    assert "/a" in keeping.ledger.unsaved, "the write may still fail"
    keeping.write(chunk)
    keeping.save()
    assert not keeping.ledger.unsaved
    keeping.receive(wire.words([0], [4], [2]))
    assert keeping.table.applied[keeping.row("a")] == 2


def test_brought_back_and_packed_up_again_during_a_write(keeping: Keeping) -> None:
    keeping.receive(wire.words([0], [3]))
    keeping.evict("a")
    keeping.evict("b")
    chunk = keeping.chunk()
    keeping.receive(wire.words([0], [4]))
    keeping.evict("a")
    keeping.write(chunk)
    assert keeping.ledger.unsaved["/a"].record.step == 2
    keeping.save()
    assert keeping.stored("a").step == 2


@pytest.mark.parametrize("packed", [False, True])
def test_our_own_claim_during_a_write_loses_nothing(keeping: Keeping, packed: bool) -> None:
    keeping.save()
    keeping.receive(wire.words([0], [3]))
    if packed:
        keeping.evict("a")
    chunk, known = keeping.chunk(), Known()
    residence.adopt_claimed(keeping.host, keeping.store.claim(["/a"], keeping.ledger.owner), ["/a"], known)
    assert not known.refusals
    outcome = keeping.write(chunk)
    assert not outcome.lost_keys
    keeping.save()
    assert (keeping.stored("a").step, keeping.stored("a").fence) == (1, 2)


@pytest.mark.parametrize("packed", [False, True])
def test_what_another_process_claimed_is_lost_and_its_holder_told(keeping: Keeping, packed: bool) -> None:
    keeping.save()
    keeping.store.claim(["/a"], "another")
    keeping.receive(wire.words([0], [3]))
    if packed:
        keeping.evict("a")
    outcome = keeping.write(keeping.chunk())
    assert outcome.lost_keys == ["/a"]
    residence.apply_lost(keeping.host, outcome, keeping.store.find(["/a"]))
    assert keeping.replies().reasons == ["SESSION_TAKEN_OVER"]
    assert (keeping.stored("a").step, keeping.stored("a").owner) == (0, "another")
    keeping.receive(wire.words([0], [4]))
    assert keeping.replies().reasons == ["SESSION_TAKEN_OVER"]
    keeping.host.check_integrity()


def test_a_session_without_a_row_that_another_process_claimed_is_not_taken_back(keeping: Keeping) -> None:
    keeping.save()
    keeping.evict("a")
    keeping.store.claim(["/a"], "another")
    keeping.receive(wire.words([0], [4]))
    assert set(keeping.replies().reasons) == {"SESSION_TAKEN_OVER"}
    assert (keeping.stored("a").owner, keeping.stored("a").fence) == ("another", 2)


def test_a_stale_copy_is_not_resumed(keeping: Keeping) -> None:
    keeping.ledger.shared = True
    keeping.save()
    theirs = keeping.store.claim(["/a"], "another")["/a"]
    assert keeping.store.write([theirs._replace(step=7)]) == []
    keeping.receive(wire.opening([5], "", ids=["a"], mode=pb.OPEN_MODE_RESUME))
    assert keeping.replies().opened[5] == ("a", 7)


def test_resuming_makes_it_ours_again_for_the_next_look(keeping: Keeping) -> None:
    """Given up when it was parked, resumed while still in memory, written, and then needed again."""
    keeping.host.disconnect(keeping.stream)
    keeping.evict("a")
    assert keeping.ledger.unsaved["/a"].record.owner == ""
    keeping.stream = keeping.host.connect()
    keeping.receive(wire.opening([3], "", ids=["a"], mode=pb.OPEN_MODE_RESUME))
    keeping.save()
    keeping.receive(wire.words([3], [4]))
    assert not keeping.replies().faults
    assert keeping.table.applied[keeping.row("a")] == 1


def test_a_failed_write_is_tried_again(keeping: Keeping) -> None:
    keeping.receive(wire.words([0], [3]))
    failed(keeping.chunk())
    assert not keeping.table.writing.any()
    keeping.save()
    assert keeping.stored("a").step == 1


def test_held_answers_are_those_of_before_the_sweep() -> None:
    keeping = Keeping(every_step=True)
    keeping.receive(wire.words([0], [3]))
    sweep = keeping.sweep()
    chunk = sweep.next()
    keeping.receive(wire.words([0], [4]))
    while chunk is not None:
        keeping.write(chunk)
        chunk = sweep.next()
    keeping.ledger.finish(sweep)
    assert [answer.step for answer in keeping.replies().observed] == [1]
    residence.make_room(keeping.host, keeping.model, 4)
    assert keeping.row("a") >= 0, "it is not saved as its answer tells, so it stays"
    keeping.save()
    assert [answer.step for answer in keeping.replies().observed] == [2]
    residence.make_room(keeping.host, keeping.model, 4)
    assert keeping.host.directory.get("/a") is None


def test_who_waits_is_not_called_before_what_was_taken_back_is_written(keeping: Keeping) -> None:
    called: list[int] = []
    keeping.evict("a")
    keeping.ledger.when_durable(["/a"], lambda: called.append(1))
    sweep = keeping.sweep()
    keeping.receive(wire.words([0], [3]))
    while (chunk := sweep.next()) is not None:
        keeping.write(chunk)
    keeping.ledger.finish(sweep)
    assert not called
    keeping.save()
    assert called
