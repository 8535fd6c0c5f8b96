"""The protocol without any transport, against the fake server's answers in whatever order things go wrong."""

from __future__ import annotations

import numpy as np
import pytest
from google.rpc import code_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.fake import Fake, status
from tests.client.wire import Wire, values

from hiddenstate.calls import Call, Kind, Observing, Session, Wish
from hiddenstate.errors import (
    AnswersLost,
    HiddenstateError,
    ResourceExhausted,
    ServerError,
    SessionClosed,
    SessionExists,
    SessionLost,
)
from hiddenstate.protocol import Protocol
from hiddenstate_proto import hiddenstate_pb2 as pb


def test_columns_come_back_in_the_order_of_the_rows() -> None:
    wire = Wire()
    sessions = wire.open("a", "b", "c")
    handles = np.array([sessions[i].handle for i in (2, 0, 2, 1, 0)])
    call, order = wire.protocol.observe_rows(handles, values(1, 2, 3, 4, 5))
    wire.settle()
    assert order is not None
    answers = call.columns().take(np.argsort(order))
    assert answers.locations[:, 0].tolist() == [1, 2, 4, 4, 7]
    assert answers.steps.tolist() == [1, 1, 2, 1, 2]
    assert wire.finished[-1] is call


def test_different_models_share_frames_by_kind() -> None:
    wire = Wire()
    (value,), (word,), (pair,) = wire.open("v"), wire.open("w", model="words"), wire.open("p", model="pairs")
    wire.protocol.observe(value, values(1))
    wire.protocol.observe(word, np.array([2, 3], np.int32))
    wire.protocol.observe(pair, np.ones((3, 2)))
    wire.protocol.observe(value, values(2))
    wire.settle()
    assert sorted(wire.fake.rows) == [2, 2, 3]
    assert [wire.protocol.step(session) for session in (value, word, pair)] == [2, 2, 3]


def test_frames_are_cut_to_the_limit() -> None:
    wire = Wire(max_frame_rows=7)
    (session,) = wire.open("a")
    call = wire.protocol.observe(session, values(*range(50)))
    wire.settle()
    assert wire.fake.rows == [7] * 7 + [1]
    assert call.columns().locations[:, 0].tolist() == np.cumsum(range(50)).tolist()


def test_wide_rows_are_cut_to_the_size_of_a_message() -> None:
    protocol = Protocol()
    _, (session,) = protocol.open(Wish("wide"), ["w"])
    protocol.frames(0.0)
    protocol.receive(pb.StreamResponse(opened=[pb.Opened(handles=b"\0" * 4, session_ids=["w"], steps=b"\0" * 8)]), 0.0)
    protocol.observe(session, np.zeros((5000, 100)))
    frames = protocol.frames(0.0)
    assert len(frames) == 2
    assert max(frame.ByteSize() for frame in frames) < 4 * 1024 * 1024


def test_limits() -> None:
    wire = Wire(max_unanswered=3, max_sessions=2)
    (session,) = wire.open("a")
    wire.protocol.observe(session, values(1, 2))
    with pytest.raises(ResourceExhausted, match="await some"):
        wire.protocol.observe(session, values(1, 2))
    wire.settle()
    wire.protocol.observe(session, values(1, 2))
    with pytest.raises(ResourceExhausted, match="at most 2 sessions"):
        wire.protocol.open(Wish("values"), ["b", "c"])


def test_handles_rest_before_they_are_used_again() -> None:
    wire = Wire()
    (first,) = wire.open("a")
    wire.protocol.ask(Kind.CLOSE, [first])
    wire.settle()
    (second,) = wire.open("b")
    assert second.handle != first.handle
    with pytest.raises(SessionClosed):
        wire.protocol.observe(first, values(1))


def test_a_session_that_was_made_before_the_cut_is_its_own() -> None:
    wire = Wire()
    call, (session,) = wire.protocol.open(Wish("values"), ["mine"])
    wire.send()
    wire.serve()
    wire.cut()
    wire.settle()
    assert wire.finished == [call]
    assert (session.id, session.error) == ("mine", None)


def test_a_session_of_somebody_else_is_not() -> None:
    wire = Wire()
    wire.open("taken")
    _, (session,) = wire.protocol.open(Wish("values"), ["taken"])
    wire.settle()
    assert isinstance(session.error, SessionExists)


def test_a_cut_does_not_make_it_ones_own() -> None:
    wire = Wire()
    (theirs,) = wire.open("taken")
    wire.protocol.observe(theirs, values(1))
    wire.settle()
    other = Wire(wire.fake)
    _, (session,) = other.protocol.open(Wish("values"), ["taken"])
    other.send()
    other.serve()
    other.cut()
    other.settle()
    assert isinstance(session.error, SessionExists)


def test_the_rewind_that_recomputes_lost_answers_may_lose_its_own() -> None:
    wire = Wire(Fake(rewind_limit=64))
    (session,) = wire.open("a")
    call = wire.protocol.observe(session, values(1, 2, 3))
    wire.send()
    wire.serve()
    wire.cut()
    for _ in ("resumed", "rewound"):
        wire.send()
        wire.serve()
        if not any(reply.rewound for reply in wire.to_client):
            wire.receive()
    assert any(reply.rewound for reply in wire.to_client)
    wire.cut()
    wire.settle()
    assert call.columns().locations[:, 0].tolist() == [1, 3, 6]
    assert wire.protocol.step(session) == 3


def test_late_answers_are_ignored() -> None:
    wire = Wire()
    (session,) = wire.open("a")
    wire.protocol.observe(session, values(1, 2))
    wire.send()
    wire.serve()
    wire.to_client = wire.to_client * 2
    wire.receive()
    assert wire.protocol.step(session) == 2
    assert wire.protocol.unanswered == 0
    wire.protocol.receive(
        pb.StreamResponse(observed=[pb.Predictions(handles=b"\xff" * 4, steps=b"\1" + b"\0" * 7)]), 0.0
    )


def test_a_frame_refused_as_a_whole_begins_a_new_connection() -> None:
    wire = Wire()
    (session,) = wire.open("a")
    call = wire.protocol.observe(session, values(1, 2))
    wire.send()
    wire.to_server.clear()
    busy = status("STREAM_BACKLOG", code_pb2.RESOURCE_EXHAUSTED, retry_after=0.5)
    wire.protocol.receive(pb.StreamResponse(faults=[pb.Fault(status=busy)]), wire.now)
    assert wire.protocol.broken is not None
    assert wire.protocol.broken.retry_after == 0.5
    wire.cut()
    wire.settle()
    assert call.errors == {}
    assert call.columns().locations[:, 0].tolist() == [1, 3]


def test_a_frame_the_server_cannot_read_fails_what_is_under_way() -> None:
    wire = Wire()
    (session,) = wire.open("a")
    call = wire.protocol.observe(session, values(1, 2))
    wire.send()
    wire.to_server.clear()
    bad = status("FRAME_INVALID", code_pb2.INVALID_ARGUMENT)
    wire.finished += wire.protocol.receive(pb.StreamResponse(faults=[pb.Fault(status=bad)]), wire.now)
    assert call in wire.finished
    assert call.errors[session.handle].reason == "FRAME_INVALID"
    wire.cut()
    again = wire.protocol.observe(session, values(5))
    wire.settle()
    assert again.columns().locations[0, 0] == 5


@pytest.mark.parametrize("kind", [Kind.PEEK, Kind.HEARTBEAT, Kind.EXPORT])
def test_so_do_questions_and_what_was_to_be_opened(kind: Kind) -> None:
    wire = Wire()
    first, second = wire.open("a", "b")
    sent: list[Call] = [
        wire.protocol.ask(kind, [first]),
        wire.protocol.fork(second, 2),
        wire.protocol.open(Wish("values"), ["new"])[0],
    ]
    wire.send()
    wire.to_server.clear()
    waiting = wire.protocol.observe(first, values(5))
    bad = status("FRAME_INVALID", code_pb2.INVALID_ARGUMENT)
    wire.finished += wire.protocol.receive(pb.StreamResponse(faults=[pb.Fault(status=bad)]), wire.now)
    for call in sent:
        assert call in wire.finished
        assert {error.reason for error in call.errors.values()} == {"FRAME_INVALID"}
    wire.cut()
    wire.settle()
    assert waiting.columns().locations[0, 0] == 5
    assert list(wire.fake.sessions) == ["a", "b"]


def test_a_session_that_went_back_is_lost() -> None:
    wire = Wire()
    (session,) = wire.open("a")
    wire.protocol.observe(session, values(1, 2, 3))
    wire.settle()
    wire.fake.sessions["a"].step = 1
    call = wire.protocol.observe(session, values(4))
    wire.send()
    wire.cut()
    wire.settle()
    assert isinstance(call.errors[session.handle], SessionLost)


def test_what_comes_one_by_one_leaves_together() -> None:
    wire = Wire()
    sessions, (word,) = wire.open("a", "b", "c"), wire.open("w", model="words")
    ones = [wire.protocol.observe_one(session, float(i)) for i, session in enumerate(sessions)]
    ones += [wire.protocol.observe_one(word, 3), wire.protocol.observe_one(sessions[1], 5.0)]
    assert wire.protocol.unanswered == 5
    wire.settle()
    assert wire.fake.rows == [4, 1]
    answers = [one.columns.locations[one.row, 0] for one in ones if one.columns and one.columns.locations.size]
    assert answers == [0, 1, 2, 6]
    assert set(ones) <= set(wire.finished)
    assert wire.protocol.unanswered == 0


def test_one_that_has_to_wait_holds_up_no_other() -> None:
    wire = Wire()
    first, second = wire.open("a", "b")
    wire.protocol.ask(Kind.PEEK, [first])
    wire.send()  # the peek holds its session until it is answered
    held, free = wire.protocol.observe_one(first, 1.0), wire.protocol.observe_one(second, 2.0)
    wire.send()
    assert [frame.observe.handles for frame in wire.to_server[1:]] == [second.handle.to_bytes(4, "little")]
    wire.settle()
    assert {held, free} <= set(wire.finished)
    assert wire.fake.sessions["a"].applied == [1]


def test_one_fails_by_itself() -> None:
    wire = Wire()
    first, second = wire.open("a", "b")
    failing, fine = wire.protocol.observe_one(first, 1.0), wire.protocol.observe_one(second, 2.0)
    wire.send()
    del wire.fake.sessions["a"]
    wire.fake.ended["a"] = "SESSION_EXPIRED"
    wire.settle()
    assert failing.error is not None
    assert fine.error is None
    assert fine.columns is not None


def test_one_given_up_is_not_sent() -> None:
    wire = Wire(max_unanswered=2)
    first, second = wire.open("a", "b")
    for _ in range(3):
        wire.protocol.abandon(wire.protocol.observe_one(first, 7.0))
    kept = wire.protocol.observe_one(second, 1.0)
    wire.settle()
    assert wire.fake.sessions["a"].applied == []
    assert kept in wire.finished
    wire.protocol.abandon(kept)
    assert wire.protocol.unanswered == 0
    assert wire.protocol.idle


def test_failing_everything() -> None:
    wire = Wire()
    (session,) = wire.open("a")
    sent = wire.protocol.observe(session, values(1))
    wire.send()
    waiting = wire.protocol.ask(Kind.PEEK, [session])
    one = wire.protocol.observe_one(session, 2.0)
    opening, _ = wire.protocol.open(Wish("values"), ["b"])
    error = ServerError("no more")
    assert set(wire.protocol.fail(error)) == {sent, waiting, one, opening}
    assert one.error is error
    assert wire.protocol.unanswered == 0
    wire.cut()
    wire.settle()
    assert wire.open("c")[0].error is None
    assert session.error is None


BUSY = status("SESSION_BACKLOG", code_pb2.RESOURCE_EXHAUSTED, retry_after=0.5)
NUMBER = st.integers(0, 3)
ACTIONS = st.one_of(
    st.tuples(st.just("observe"), NUMBER, st.integers(1, 4)),
    st.tuples(st.just("rows"), st.lists(NUMBER, min_size=1, max_size=8)),
    st.tuples(st.just("peek"), NUMBER),
    st.tuples(st.just("refuse"), st.integers(1, 3)),
    st.tuples(st.just("send")),
    st.tuples(st.just("serve")),
    st.tuples(st.just("receive")),
    st.tuples(st.just("cut")),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(ACTIONS, max_size=60))
def test_every_observation_is_applied_once_and_in_order(actions: list[tuple[object, ...]]) -> None:
    wire = Wire(max_frame_rows=5)
    sessions = wire.open(*"abcd")
    sent: dict[int, list[float]] = {session.handle: [] for session in sessions}
    expected: list[tuple[Observing, list[tuple[int, int]]]] = []
    peeks: list[Call] = []
    counter = iter(range(1, 100_000))

    def submit(rows: list[Session]) -> None:
        numbers = values(*(next(counter) for _ in rows))
        handles = np.array([session.handle for session in rows])
        if len({session.handle for session in rows}) == 1:
            call, order = wire.protocol.observe(rows[0], numbers), None
        else:
            call, order = wire.protocol.observe_rows(handles, numbers)
        places = []
        for session, number in zip(rows, numbers[:, 0], strict=True):
            sent[session.handle].append(float(number))
            places.append((session.handle, len(sent[session.handle])))
        expected.append((call, places if order is None else [places[i] for i in order]))

    for name, *arguments in actions:
        match name, arguments:
            case "observe", [int(which), int(count)]:
                submit([sessions[which]] * count)
            case "rows", [list(which)]:
                submit([sessions[i] for i in which])
            case "peek", [int(which)]:
                peeks.append(wire.protocol.ask(Kind.PEEK, [sessions[which]]))
            case "refuse", [int(count)]:
                wire.fake.refusals = [BUSY] * count
            case _:
                getattr(wire, str(name))()
    wire.settle()

    for session in sessions:
        assert wire.fake.sessions[session.id].applied == sent[session.handle]
        assert wire.protocol.step(session) == len(sent[session.handle])
    assert wire.protocol.unanswered == 0
    assert wire.protocol.idle
    for call, places in expected:
        assert call in wire.finished
        answers = call.columns()
        for row, (handle, step) in enumerate(places):
            if np.isnan(answers.locations[row, 0] if answers.locations.size else np.nan):
                assert lost(call.errors[handle], step)
            else:
                assert answers.steps[row] == step
                assert answers.locations[row, 0] == sum(sent[handle][:step])
    assert all(call in wire.finished and not call.errors for call in peeks)


def lost(error: HiddenstateError, step: int) -> bool:
    """Whether the error owns up to the loss of this step's answer."""
    return isinstance(error, AnswersLost) and step <= int(error.metadata["last"])
