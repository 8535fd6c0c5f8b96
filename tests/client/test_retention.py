"""Nothing is lost and nothing applied twice, whatever the server loses and the network cuts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from google.rpc import code_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.fake import Fake, status
from tests.client.wire import Wire, values

from hiddenstate.calls import Call, Forking, Kind, Observing, One, Rewinding, Session
from hiddenstate.errors import AnswersLost, ResourceExhausted, RewindLimit, SessionLost
from hiddenstate.frames import Rows
from hiddenstate.retention import Retention
from hiddenstate_proto import hiddenstate_pb2 as pb

BUSY = status("SESSION_BACKLOG", code_pb2.RESOURCE_EXHAUSTED, retry_after=0.5)
AWAY = status("STORE_UNAVAILABLE", code_pb2.UNAVAILABLE, retry_after=1.5)


def lasting(rewind_limit: int = 64) -> Fake:
    """A server that stores what it is told to."""
    return Fake(pb.DURABILITY_BEHIND, rewind_limit)


# replay


def test_what_a_crash_lost_is_replayed_exactly() -> None:
    wire = Wire(lasting())
    (session,) = wire.open("s")
    wire.protocol.observe(session, values(1, 2, 3))
    wire.settle()
    wire.fake.store()
    wire.protocol.observe(session, values(4, 5))
    wire.settle()
    assert wire.protocol.step(session) == 5
    wire.crash()
    wire.fake.rows.clear()
    wire.settle()
    assert wire.fake.rows == [2]
    assert wire.protocol.replayed == 2
    assert wire.fake.sessions["s"].applied == [1, 2, 3, 4, 5]
    assert wire.protocol.step(session) == 5


def test_a_lost_rewind_is_made_again_while_an_observation_waits() -> None:
    wire = Wire(lasting())
    (session,) = wire.open("s")
    wire.protocol.observe(session, values(1, 2, 3, 4))
    wire.settle()
    wire.fake.store()
    wire.protocol.rewind(session, 3)
    wire.settle()
    call = wire.protocol.observe(session, values(5))
    wire.crash()
    wire.settle()
    assert wire.fake.sessions["s"].applied == [1, 5]
    assert call.columns().steps.tolist() == [2]
    assert wire.protocol.step(session) == 2


def test_steps_that_were_safe_before_a_rewind_are_kept_for_the_replay_after_it() -> None:
    wire = Wire(lasting())
    rewound, other = wire.open("rewound", "other")
    wire.protocol.observe(rewound, values(1, 2, 3))
    wire.settle()
    wire.fake.store()
    wire.protocol.rewind(rewound, 2)
    wire.settle()
    wire.protocol.observe(rewound, values(4, 5))
    wire.protocol.observe(other, values(6))
    wire.settle()
    wire.crash()
    wire.settle()  # while one is taken back again, the other is replayed
    assert wire.fake.sessions["rewound"].applied == [1, 4, 5]
    assert wire.fake.sessions["other"].applied == [6]


def test_durable_steps_come_with_every_answer() -> None:
    wire = Wire(lasting())
    (session,) = wire.open("s")
    wire.protocol.observe(session, values(1, 2))
    wire.settle()
    wire.fake.store()
    assert wire.protocol.durable_step(session) == 0
    wire.protocol.ask(Kind.HEARTBEAT, [session])
    wire.settle()
    assert wire.protocol.durable_step(session) == 2
    wire.protocol.rewind(session, 1)
    wire.settle()
    assert (wire.protocol.durable_step(session), wire.protocol.rewinds(session)) == (1, 1)


def test_a_session_that_was_never_stored_is_made_again_under_its_id() -> None:
    wire = Wire(lasting())
    (named,), (unnamed,) = wire.open("s"), wire.open("")
    wire.protocol.observe(named, values(1, 2))
    wire.protocol.observe(unnamed, values(3))
    wire.settle()
    id = unnamed.id
    wire.crash()
    assert wire.fake.sessions == {}
    wire.settle()
    assert wire.fake.sessions["s"].applied == [1, 2]
    assert wire.fake.sessions[id].applied == [3]
    # the answer to the second creation is lost as well
    wire.crash()
    wire.send()
    wire.serve()
    wire.receive()
    wire.send()
    wire.serve()
    wire.cut()
    wire.settle()
    assert wire.fake.sessions["s"].applied == [1, 2]
    assert wire.protocol.observe(named, values(1)).errors == {}


def test_a_session_goes_back_beyond_what_is_kept() -> None:
    wire = Wire(lasting())
    (session,) = wire.open("s")
    wire.protocol.observe(session, values(1, 2, 3))
    wire.settle()
    wire.fake.store()
    wire.protocol.observe(session, values(4))
    wire.settle()
    assert wire.protocol.durable_step(session) == 3
    wire.fake.stored["s"].rewind(1)
    wire.crash()
    call = wire.protocol.ask(Kind.PEEK, [session])
    wire.settle()
    assert isinstance(call.errors[session.handle], SessionLost)


def test_without_durability_nothing_is_kept() -> None:
    wire = Wire(Fake(), max_retained=2000)
    (session,) = wire.open("s")
    for _ in range(10):
        wire.protocol.observe(session, values(*range(1000)))
        wire.settle()
    wire.fake.stored = {}
    wire.crash()
    call = wire.protocol.ask(Kind.PEEK, [session])
    wire.settle()
    assert isinstance(call.errors[session.handle], SessionLost)


def test_a_long_replay_goes_in_pieces() -> None:
    wire = Wire(lasting())
    sessions = wire.open(*(f"s{i}" for i in range(6)))
    for session in sessions:
        wire.protocol.observe(session, values(*range(10_000)))
    wire.settle()
    wire.crash()
    wire.fake.rows.clear()
    late = wire.protocol.observe(sessions[0], values(7))
    wire.settle()
    assert max(wire.fake.rows) <= 16_384
    assert sum(wire.fake.rows) == 60_001
    assert all(wire.fake.sessions[s.id].applied[:10_000] == list(range(10_000)) for s in sessions)
    assert late.columns().locations[0, 0] == sum(range(10_000)) + 7


# the buffer


def test_the_buffer_is_bounded() -> None:
    wire = Wire(lasting(), max_retained=5)
    (session,) = wire.open("s")
    wire.protocol.observe(session, values(1, 2, 3, 4))
    with pytest.raises(ResourceExhausted, match=r"keeps 5 observations .* store lags .* raise max_retained") as caught:
        wire.protocol.observe(session, values(5, 6))
    assert caught.value.reason == "CLIENT_RETAINED"
    wire.settle()
    assert [lagging.id for lagging in wire.protocol.unsafe()] == ["s"]
    wire.fake.store()
    wire.protocol.ask(Kind.HEARTBEAT, wire.protocol.unsafe())
    wire.settle()
    wire.protocol.observe(session, values(5, 6))
    assert wire.protocol.unsafe() == []


def test_retention_keeps_the_newest_row_of_each_step_above_the_mark() -> None:
    above, below = np.array([0, 10]), np.array([5, 13])
    retention = Retention(100, lambda: (above, below))
    retention.add(Rows(np.array([0, 1, 0, 1]), np.array([1, 11, 2, 12]), values(1, 2, 3, 4)))
    retention.rewrite(0)
    retention.add(Rows(np.array([0, 0, 0]), np.array([2, 3, 4]), values(5, 6, 7)))
    retention.add(Rows(np.array([1]), np.array([12]), np.array([9], np.int32)))
    everything = np.array([0, 0]), np.array([99, 99])
    floats, tokens = retention.rows(*everything)
    assert floats.inputs[:, 0].tolist() == [1, 2, 4, 5, 6, 7]
    assert (floats.handles.tolist(), floats.steps.tolist()) == ([0, 1, 1, 0, 0, 0], [1, 11, 12, 2, 3, 4])
    assert tokens.inputs.tolist() == [9]
    retention.remove(0, 2, 2)
    below[0] = 3
    (floats,) = retention.rows(np.array([1, 99]), np.array([99, 0]))
    assert (floats.inputs[:, 0].tolist(), floats.steps.tolist()) == ([1, 7], [1, 2])
    above[:] = 50
    assert retention.has_room(100)
    assert not retention.has_room(101)


def test_what_is_sent_after_a_rewind_takes_the_place_of_what_was_taken_back() -> None:
    """Also where these rows are the ones that make the retention look for rows that are not needed."""
    below = np.array([1001])
    retention = Retention(10_000, lambda: (np.array([0]), below))
    retention.add(Rows(np.zeros(1000, np.int64), np.arange(1, 1001), np.zeros((1000, 1))))
    retention.rewrite(0)
    below[0] = 1031
    retention.add(Rows(np.zeros(40, np.int64), np.arange(991, 1031), np.ones((40, 1))))
    (rows,) = retention.rows(np.array([981]), np.array([1030]))
    assert rows.steps.tolist() == list(range(981, 1031))
    assert rows.inputs[:, 0].tolist() == [0] * 10 + [1] * 40


def test_rows_that_are_not_needed_are_dropped_as_it_goes() -> None:
    mark = np.array([0])
    retention = Retention(10_000, lambda: (mark, np.array([10**9])))
    for step in range(1, 100_000, 100):
        retention.add(Rows(np.zeros(100, np.int64), np.arange(step, step + 100), np.zeros((100, 1))))
        mark[0] = step
    assert retention._size <= 2048
    assert retention.has_room(7000)


# rewinding


def test_rewinding() -> None:
    wire = Wire(lasting())
    (session,) = wire.open("s")
    wire.protocol.observe(session, values(1, 2, 3))
    back = wire.protocol.rewind(session, 2)
    after = wire.protocol.observe(session, values(10))
    wire.settle()
    assert back.columns().locations[0, 0] == 1
    assert after.columns().locations[0, 0] == 11
    assert wire.fake.sessions["s"].applied == [1, 10]
    assert wire.protocol.step(session) == 2
    far = wire.protocol.rewind(session, 3)
    wire.settle()
    with pytest.raises(RewindLimit, match="holds 2 observations"):
        far.raise_any()
    wire.fake.sessions["s"].oldest = 2
    refused = wire.protocol.rewind(session, 1)
    later = wire.protocol.observe(session, values(5))
    wire.settle()
    assert isinstance(refused.errors[session.handle], RewindLimit)
    assert refused.errors[session.handle].metadata["oldest"] == "2"
    assert later.columns().locations[0, 0] == 16


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("served", [False, True])
def test_a_rewind_whose_answer_is_lost_is_done_once(served: bool, stored: bool) -> None:
    wire = Wire(lasting())
    (session,) = wire.open("s")
    wire.protocol.observe(session, values(1, 2, 3))
    wire.settle()
    back = wire.protocol.rewind(session, 1)
    wire.send()
    if served:
        wire.serve()
    if stored:
        wire.fake.store()
    wire.crash() if stored else wire.cut()
    after = wire.protocol.observe(session, values(10))
    wire.settle()
    assert back.columns().locations[0, 0] == 3
    assert after.columns().locations[0, 0] == 13
    assert wire.fake.sessions["s"].applied == [1, 2, 10]
    assert wire.fake.sessions["s"].rewinds == 1


def test_a_rewind_that_was_sent_and_given_up_is_known_nevertheless() -> None:
    wire = Wire(lasting())
    (session,) = wire.open("s")
    wire.protocol.observe(session, values(1, 2, 3))
    wire.settle()
    back = wire.protocol.rewind(session, 1)
    wire.send()
    wire.serve()
    wire.cut()
    wire.protocol.abandon(back)
    after = wire.protocol.observe(session, values(10))
    wire.settle()
    assert after.columns().locations[0, 0] == 13


def test_answers_lost_in_a_cut_are_recomputed() -> None:
    wire = Wire(lasting())
    (session,) = wire.open("s")
    call = wire.protocol.observe(session, values(1, 2, 3, 4))
    wire.send()
    wire.serve()
    wire.cut()
    wire.settle()
    assert call.errors == {}
    assert call.columns().locations[:, 0].tolist() == [1, 3, 6, 10]
    assert wire.fake.sessions["s"].applied == [1, 2, 3, 4]
    assert wire.protocol.rewinds(session) == 1


def test_answers_beyond_what_can_be_taken_back_are_lost() -> None:
    for limit, keeps in ((2, True), (64, False)):
        wire = Wire(lasting(limit))
        (session,) = wire.open("s")
        call = wire.protocol.observe(session, values(1, 2, 3, 4))
        wire.send()
        wire.serve()
        wire.fake.store()
        wire.crash(keeps_history=keeps)
        wire.settle()
        error = call.errors[session.handle]
        assert isinstance(error, AnswersLost)
        assert error.metadata == {"first": "1", "last": "3"}
        assert call.columns().locations[-1, 0] == 10
        assert wire.fake.sessions["s"].applied == [1, 2, 3, 4]


# everything at once


@dataclass
class Expected:
    """What a session must hold, as if nothing ever went wrong."""

    session: Session
    applied: list[float] = field(default_factory=list)
    fork: Call | None = None


class Story:
    """Asks for things, and remembers what must come of them."""

    def __init__(self, fake: Fake) -> None:
        self.wire = Wire(fake, max_frame_rows=5)
        self.all = [Expected(session) for session in self.wire.open(*"abc")]
        self.observed: list[tuple[Observing, list[tuple[Expected, int, float]]]] = []
        self.ones: list[tuple[One, Expected, int, float]] = []
        self.asked: list[tuple[Call, Expected, float]] = []
        self.impossible: list[Rewinding] = []
        self.copies: list[tuple[Forking, list[Expected]]] = []
        self.numbers = iter(range(1, 1_000_000))

    def pick(self, which: int) -> Expected:
        return self.all[which % len(self.all)]

    def observe(self, which: list[int]) -> None:
        rows = [self.pick(i) for i in which]
        numbers = values(*(next(self.numbers) for _ in rows))
        if len({id(row) for row in rows}) == 1:
            call, order = self.wire.protocol.observe(rows[0].session, numbers), None
        else:
            handles = np.array([row.session.handle for row in rows])
            call, order = self.wire.protocol.observe_rows(handles, numbers)
        answers = []
        for row, number in zip(rows, numbers[:, 0].tolist(), strict=True):
            row.applied.append(number)
            answers.append((row, len(row.applied), sum(row.applied)))
        self.observed.append((call, answers if order is None else [answers[i] for i in order]))

    def observe_one_by_one(self, which: list[int]) -> None:
        for row in map(self.pick, which):
            number = float(next(self.numbers))
            one = self.wire.protocol.observe_one(row.session, number)
            row.applied.append(number)
            self.ones.append((one, row, len(row.applied), sum(row.applied)))

    def give_up(self, which: int) -> None:
        self.wire.protocol.abandon(self.wire.protocol.observe_one(self.pick(which).session, -1.0))

    def rewind(self, which: int, count: int) -> None:
        row = self.pick(which)
        call = self.wire.protocol.rewind(row.session, count)
        if count > len(row.applied):
            self.impossible.append(call)
        else:
            del row.applied[-count:]
            self.asked.append((call, row, sum(row.applied)))

    def peek(self, which: int) -> None:
        row = self.pick(which)
        self.asked.append((self.wire.protocol.ask(Kind.PEEK, [row.session]), row, sum(row.applied)))

    def fork(self, which: int) -> None:
        row = self.pick(which)
        if len(self.all) < 8:
            call = self.wire.protocol.fork(row.session, 2)
            self.all += (copies := [Expected(copy, list(row.applied), call) for copy in call.copies])
            self.copies.append((call, copies))

    def refuse(self, observations: int, questions: int) -> None:
        self.wire.fake.refusals = [BUSY] * observations
        self.wire.fake.question_refusals = [AWAY] * questions

    def check(self, *, answers_may_be_lost: bool = False) -> None:
        wire = self.wire
        wire.settle()
        for row in self.all:
            assert row.session.error is None
            assert wire.fake.sessions[row.session.id].applied == row.applied
            assert wire.protocol.step(row.session) == len(row.applied)
            assert wire.protocol.rewinds(row.session) == wire.fake.sessions[row.session.id].rewinds
        assert wire.protocol.unanswered == 0
        assert wire.protocol.idle
        for call, answers in self.observed:
            assert call in wire.finished
            columns = call.columns()
            for i, (row, step, total) in enumerate(answers):
                error = call.errors.get(row.session.handle)
                if answers_may_be_lost and isinstance(error, AnswersLost) and step <= int(error.metadata["last"]):
                    continue
                assert error is None or step > int(error.metadata["last"]), error
                assert (columns.steps[i], columns.locations[i, 0]) == (step, total)
        for one, _, step, total in self.ones:
            assert one in wire.finished
            if answers_may_be_lost and isinstance(one.error, AnswersLost) and step <= int(one.error.metadata["last"]):
                continue
            assert one.error is None, one.error
            assert one.columns is not None
            assert (one.columns.steps[one.row], one.columns.locations[one.row, 0]) == (step, total)
        for asked, _, total in self.asked:
            assert asked in wire.finished
            asked.raise_any()
            assert asked.columns().locations[0, 0] == total
        for rewinding in self.impossible:
            assert isinstance(next(iter(rewinding.errors.values())), RewindLimit)
        assert all(forking in wire.finished and not forking.errors for forking, _ in self.copies)


NUMBER = st.integers(0, 7)
NETWORK = [st.tuples(st.just(name)) for name in ("send", "serve", "receive", "cut", "repeat", "store")]
OBSERVING = [
    st.tuples(st.just("observe"), st.lists(NUMBER, min_size=1, max_size=8)),
    st.tuples(st.just("observe"), NUMBER.flatmap(lambda i: st.lists(st.just(i), min_size=1, max_size=6))),
    st.tuples(st.just("observe_one_by_one"), st.lists(NUMBER, min_size=1, max_size=8)),
    st.tuples(st.just("give_up"), NUMBER),
    st.tuples(st.just("peek"), NUMBER),
]
REFUSING = st.tuples(st.just("refuse"), st.integers(0, 3), st.integers(0, 2))
MOVING = [st.tuples(st.just("rewind"), NUMBER, st.integers(1, 5)), st.tuples(st.just("fork"), NUMBER)]


def play(story: Story, actions: list[tuple[object, ...]]) -> None:
    for name, *arguments in actions:
        if name == "store":
            story.wire.fake.store()
        elif name == "crash":
            story.wire.crash(keeps_history=bool(arguments[0]))
        else:
            getattr(story if hasattr(story, str(name)) else story.wire, str(name))(*arguments)


@settings(deadline=None, max_examples=400)
@given(st.lists(st.one_of(*OBSERVING, *MOVING, *NETWORK, REFUSING, st.just(("crash", True))), max_size=60))
def test_the_server_ends_up_with_everything_once_and_every_answer_is_right(actions: list[tuple[object, ...]]) -> None:
    story = Story(lasting())
    play(story, actions)
    story.check()


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 4),
    st.lists(st.one_of(*OBSERVING, *NETWORK, REFUSING, st.tuples(st.just("crash"), st.booleans())), max_size=60),
)
def test_where_little_can_be_taken_back_only_answers_are_lost(limit: int, actions: list[tuple[object, ...]]) -> None:
    story = Story(lasting(limit))
    play(story, actions)
    story.check(answers_may_be_lost=True)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(*OBSERVING, *MOVING, *NETWORK), max_size=60))
def test_without_durability_connections_may_break(actions: list[tuple[object, ...]]) -> None:
    story = Story(Fake(pb.DURABILITY_NONE, 64))
    play(story, actions)
    story.check()
