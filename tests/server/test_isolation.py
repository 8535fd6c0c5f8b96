"""Whatever else happens, a session's outputs are those of a lone model fed its own observations.

Random interleavings of opens, observations, peeks, rewinds, forks, snapshots, continuations and their cancellation,
closes, disconnects, resumes, expiries, evictions, versions that come and go, moves to them and ticks run on a host
without transport, on a test double and on a real ONNX bundle. Stores, and processes that are killed, are in
test_keeper_interleavings.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, cast

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.server import wire
from tests.server.doubles import LONGER, WORDS, Clock, MixingWords, drained

from hiddenstate_models.export import random_bundle
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.runtimes import Outputs, Runtime, WordRuntime
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.settings import Settings
from hiddenstate_server.stepping.directory import Place
from hiddenstate_server.stepping.model import ModelInfo
from hiddenstate_server.stepping.streams import Stream
from hiddenstate_server.versions.repository import load_models

TOKENS = 12
CAPACITY = 6
REWIND_STEPS = 6
LEASE = 30.0
DETACH = 10.0


@dataclass(eq=False)
class Client:
    """One stream as its client sees it."""

    stream: Stream
    replies: wire.Replies = field(default_factory=wire.Replies)
    sessions: dict[int, str] = field(default_factory=dict)
    seen: int = 0
    peeks_seen: int = 0
    rewinds_seen: int = 0
    exports_seen: int = 0
    calls: dict[int, Snapshot] = field(default_factory=dict)
    """Continuations asked for, and of what."""
    faults_seen: int = 0
    forks_due: dict[int, Told] = field(default_factory=dict)
    """Copies asked for, by the handles they are to have."""


History = tuple[int, ...]


class Snapshot(NamedTuple):
    """What a session was when it was asked for."""

    history: History
    furthest: int
    """The last step it had been at."""
    version: str
    since: int


@dataclass(eq=False)
class Told:
    """A session as told to the server: what it was sent, and after which observations answers are due."""

    holder: Client | None
    handle: int
    sent: list[int] = field(default_factory=list)
    rewinds: int = 0
    furthest: int = 0
    due: list[History] = field(default_factory=list)
    peeks_due: list[History] = field(default_factory=list)
    rewinds_due: list[History] = field(default_factory=list)
    exports_due: list[Snapshot] = field(default_factory=list)
    closing: bool = False
    version: str = "1"
    since: int = 0
    """Observations before this one were not fed to the version."""
    positions: dict[tuple[int, int], History] = field(default_factory=lambda: {(0, 0): ()})
    """By number of rewinds and of observations: all that a resumed session can be found at."""

    def observe(self, token: int) -> None:
        self.sent.append(token)
        self.due.append(tuple(self.sent))
        self.furthest = max(self.furthest, len(self.sent))
        self.remember()

    def remember(self) -> None:
        self.positions[self.rewinds, len(self.sent)] = tuple(self.sent)

    @property
    def is_answered(self) -> bool:
        return not (self.due or self.peeks_due or self.rewinds_due or self.exports_due)

    def resumed(self, rewinds: int, step: int) -> None:
        self.sent, self.rewinds = list(self.positions[rewinds, step]), rewinds
        self.detach()

    def copy(self, handle: int) -> Told:
        return begun(self.holder, handle, tuple(self.sent), self.furthest, self.version, self.since)

    def detach(self) -> None:
        self.closing = False
        self.due, self.peeks_due, self.rewinds_due, self.exports_due = [], [], [], []


def begun(holder: Client | None, handle: int, history: History, furthest: int, version: str, since: int) -> Told:
    """A session that begins in the middle."""
    return Told(
        holder,
        handle,
        list(history),
        0,
        furthest,
        version=version,
        since=since,
        positions={(0, len(history)): history},
    )


class Interleavings(RuleBasedStateMachine):
    """Rules are what clients and time can do."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        limits = Limits(max_sessions=CAPACITY, idle_timeout=LEASE, detach_timeout=DETACH, rewind_steps=REWIND_STEPS)
        self.host = Host(limits, Metrics("test"), self.clock)
        self.info, _ = self.served("1")
        self.last_version = 0
        self.load()
        self.clients: list[Client] = []
        self.sessions: dict[str, Told] = {}
        self.snapshots: list[tuple[bytes, Snapshot]] = []
        self.serial = 0
        self.next_handle = 0

    def served(self, version: str) -> tuple[ModelInfo, Runtime]:
        return replace(WORDS, version=version), MixingWords(int(version))

    def load(self) -> None:
        """A new version comes."""
        self.last_version += 1
        self.host.add_model(*self.served(str(self.last_version)), max_batch=4, max_run=3)

    @cache  # noqa: B019
    def alone(self, version: str, history: History) -> tuple[Outputs, np.ndarray]:
        """What a lone session fed `history` one by one has come to."""
        _, runtime = self.served(version)
        if not history:
            return runtime.initial()
        _, state = self.alone(version, history[:-1])
        return runtime.step(np.array(history[-1:]), state)

    def pick(self, index: int) -> str | None:
        names = sorted(self.sessions)
        return names[index % len(names)] if names else None

    def place_of(self, name: str) -> Place:
        place = self.host.directory.get(f"/{name}")
        assert place is not None
        return place

    # what clients do

    @initialize(reloads=st.booleans())
    def begin(self, reloads: bool) -> None:
        """Sessions under way: which rules run is drawn too, and without these most have little to act on."""
        for who, count in enumerate((3, 2)):
            self.connect()
            self.open(who, count)
            self.observe(who, [(index, 3 * who + index) for index in (0, 1, 2, 1)], numbered=False)
        # More than is kept of a session.
        self.observe(0, [(0, step % TOKENS) for step in range(40)], numbered=False)
        if reloads:
            self.reload()

    def feed(self, stream: Stream, frame: pb.StreamRequest) -> None:
        """As the service does."""
        if not self.host.receive_single(stream, frame.SerializeToString()):
            self.host.receive(stream, frame)

    @precondition(lambda self: len(self.clients) < 3)
    @rule()
    def connect(self) -> None:
        self.clients.append(Client(self.host.connect()))

    @precondition(lambda self: self.clients)
    @rule(who=st.integers(0, 2), count=st.integers(1, 5))
    def open(self, who: int, count: int) -> None:
        client = self.clients[who % len(self.clients)]
        handles = [self.next_handle + i for i in range(count)]
        self.next_handle += count
        ids = [f"session-{self.serial + i}" for i in range(count)]
        self.serial += count
        self.host.receive(client.stream, wire.opening(handles, self.info.name, ids=ids))
        for handle, name in zip(handles, ids, strict=True):
            if self.host.directory.get(f"/{name}") is not None:
                self.sessions[name] = Told(client, handle, version=self.host.model(self.info.name).info.version)
                client.sessions[handle] = name
        self.forget_evicted()

    @precondition(lambda self: self.clients)
    @rule(
        who=st.integers(0, 2),
        picks=st.lists(st.tuples(st.integers(0, 9), st.integers(0, TOKENS - 1)), min_size=1, max_size=9),
        numbered=st.booleans(),
    )
    def observe(self, who: int, picks: list[tuple[int, int]], numbered: bool) -> None:
        client = self.clients[who % len(self.clients)]
        held = [
            (name, told) for name, told in sorted(self.sessions.items()) if told.holder is client and not told.closing
        ]
        if not held:
            return
        handles, tokens, steps = [], [], []
        for index, token in picks:
            told = held[index % len(held)][1]
            told.observe(token)
            handles.append(told.handle)
            tokens.append(token)
            steps.append(len(told.sent))
        self.feed(client.stream, wire.words(handles, tokens, steps if numbered else ()))

    @rule(index=st.integers(0, 9), off=st.sampled_from([-2, 2, 7]))
    def observe_out_of_order(self, index: int, off: int) -> None:
        """Neither a skipped nor an old step changes anything."""
        name = self.pick(index)
        told = self.sessions.get(name or "")
        if told is None or told.holder is None or told.closing or len(told.sent) + off < 1:
            return
        self.collect(told.holder)
        faults = len(told.holder.replies.faults)
        step, (model, row) = len(told.sent) + off, self.place_of(name or "")
        going_back = model.rewinding.target(row)
        applied = int(model.table.applied[row]) if going_back is None else going_back
        if step == applied and going_back is None:
            told.due.append(tuple(told.sent[:step]))  # a repeat of the last applied step is answered once more
        self.feed(told.holder.stream, wire.words([told.handle], [1], [step]))
        self.collect(told.holder)
        reasons = told.holder.replies.reasons[faults:]
        if step > len(told.sent):
            assert reasons == ["STEP_GAP"]
        else:
            assert reasons == (["STEP_ALREADY_APPLIED"] if step < applied else [])

    @rule(index=st.integers(0, 9))
    def repeat(self, index: int) -> None:
        """The last step again: answered from the last result once applied, ignored while it waits."""
        name = self.pick(index)
        told = self.sessions.get(name or "")
        if told is None or told.holder is None or told.closing or not told.sent:
            return
        model, row = self.place_of(name or "")
        idle = model.table.applied[row] == len(told.sent) and model.rewinding.target(row) is None
        self.collect(told.holder)
        before = len(told.holder.replies.observed)
        if idle:
            told.due.append(tuple(told.sent))
        self.feed(told.holder.stream, wire.words([told.handle], [0], [len(told.sent)]))
        if idle:
            self.collect(told.holder)
            assert len(told.holder.replies.observed) == before + 1
        assert model.table.accepted[row] == len(told.sent)

    @rule(index=st.integers(0, 9))
    def peek(self, index: int) -> None:
        told = self.sessions.get(self.pick(index) or "")
        if told is not None and told.holder is not None and not told.closing:
            told.peeks_due.append(tuple(told.sent))
            self.host.receive(told.holder.stream, wire.peek([told.handle]))

    @rule(index=st.integers(0, 9), back=st.integers(-1, 8), numbered=st.booleans())
    def rewind(self, index: int, back: int, numbered: bool) -> None:
        """Back within the limit, beyond it, or to a step that was never reached."""
        told = self.sessions.get(self.pick(index) or "")
        if told is None or told.holder is None or told.closing or back > len(told.sent):
            return
        self.collect(told.holder)
        target, faults = len(told.sent) - back, len(told.holder.replies.faults)
        numbers = [told.rewinds + 1] if numbered else []
        self.host.receive(told.holder.stream, wire.rewind([told.handle], [target], numbers))
        self.collect(told.holder)
        if told.holder.replies.reasons[faults:]:
            assert told.holder.replies.reasons[faults:] == ["REWIND_LIMIT"]
            assert target < max(told.furthest - REWIND_STEPS, told.since + 1 if told.since else 0)
            return
        del told.sent[target:]
        told.rewinds += 1
        told.remember()
        told.rewinds_due.append(tuple(told.sent))

    @rule(index=st.integers(0, 9), back=st.integers(0, 3))
    def rewind_again(self, index: int, back: int) -> None:
        """A rewind that was done, or waits, is only answered."""
        told = self.sessions.get(self.pick(index) or "")
        if told is not None and told.holder is not None and not told.closing:
            told.rewinds_due.append(tuple(told.sent))
            frame = wire.rewind([told.handle], [max(0, len(told.sent) - back)], [told.rewinds])
            self.host.receive(told.holder.stream, frame)

    @rule(index=st.integers(0, 9), count=st.integers(1, 2))
    def fork(self, index: int, count: int) -> None:
        told = self.sessions.get(self.pick(index) or "")
        if told is not None and told.holder is not None and not told.closing:
            handles = [self.next_handle + i for i in range(count)]
            self.next_handle += count
            told.holder.forks_due |= {handle: told.copy(handle) for handle in handles}
            self.host.receive(told.holder.stream, wire.fork([told.handle] * count, handles))

    @rule(index=st.integers(0, 9))
    def export(self, index: int) -> None:
        told = self.sessions.get(self.pick(index) or "")
        if told is not None and told.holder is not None and not told.closing:
            told.exports_due.append(Snapshot(tuple(told.sent), told.furthest, told.version, told.since))
            self.host.receive(told.holder.stream, wire.export([told.handle]))

    @precondition(lambda self: self.clients and self.snapshots)
    @rule(who=st.integers(0, 2), index=st.integers(0, 9))
    def restore(self, who: int, index: int) -> None:
        """Snapshots outlive their sessions, and can be restored any number of times."""
        client = self.clients[who % len(self.clients)]
        snapshot, (history, furthest, version, since) = self.snapshots[-1 - index % len(self.snapshots)]
        handle, name = self.next_handle, f"session-{self.serial}"
        self.next_handle += 1
        self.serial += 1
        frame = wire.opening([handle], "", ids=[name], mode=pb.OPEN_MODE_RESTORE, snapshots=[snapshot])
        self.host.receive(client.stream, frame)
        if self.host.directory.get(f"/{name}") is not None:
            self.sessions[name], client.sessions[handle] = (
                begun(client, handle, history, furthest, version, since),
                name,
            )
        self.forget_evicted()

    @rule(index=st.integers(0, 9), count=st.integers(1, 6))
    def generate(self, index: int, count: int) -> None:
        told = self.sessions.get(self.pick(index) or "")
        if told is not None and told.holder is not None and not told.closing:
            call = len(told.holder.calls)
            told.holder.calls[call] = Snapshot(tuple(told.sent), told.furthest, told.version, told.since)
            self.host.receive(told.holder.stream, wire.generate(told.handle, call, count))

    @precondition(lambda self: self.clients)
    @rule(who=st.integers(0, 2), call=st.integers(0, 9))
    def cancel_generate(self, who: int, call: int) -> None:
        self.host.receive(self.clients[who % len(self.clients)].stream, wire.cancel_generate(call))

    @rule(index=st.integers(0, 9))
    def close(self, index: int) -> None:
        told = self.sessions.get(self.pick(index) or "")
        if told is not None and told.holder is not None and not told.closing:
            self.host.receive(told.holder.stream, wire.close([told.handle]))
            told.closing = True

    @precondition(lambda self: self.clients)
    @rule(who=st.integers(0, 2))
    def disconnect(self, who: int) -> None:
        """A client goes away in the middle of whatever it was doing."""
        client = self.clients.pop(who % len(self.clients))
        self.host.disconnect(client.stream)
        for name in client.sessions.values():
            told = self.sessions.get(name)
            if told is not None and told.holder is client:
                told.holder = None
                told.detach()
        self.forget_ended()

    @precondition(lambda self: self.clients)
    @rule(index=st.integers(0, 9), who=st.integers(0, 2))
    def resume(self, index: int, who: int) -> None:
        name = self.pick(index)
        if name is None:
            return
        told, client = self.sessions[name], self.clients[who % len(self.clients)]
        handle = self.next_handle
        self.next_handle += 1
        if told.holder is not None:
            self.collect(told.holder)
            del told.holder.sessions[told.handle]
        self.host.receive(client.stream, wire.opening([handle], "", ids=[name], mode=pb.OPEN_MODE_RESUME))
        client.sessions[handle] = name
        told.holder, told.handle = client, handle
        told.detach()
        self.collect(client)
        opened, step = client.replies.opened[handle]
        assert opened == name
        told.resumed(client.replies.rewinds[handle], step)

    @rule(seconds=st.sampled_from([1.0, DETACH / 2, DETACH, LEASE]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.host.expire()
        self.forget_ended()

    @precondition(lambda self: len(self.host.models) < 3)
    @rule()
    def reload(self) -> None:
        """A new version comes, for new sessions; the others stay where they are."""
        self.load()

    @precondition(lambda self: len(self.host.models) > 1)
    @rule()
    def retire(self) -> None:
        """The oldest version is to go, and does so with its last session."""
        self.host.models[0].retired = True
        self.host.expire()
        self.forget_ended()
        assert {told.version for told in self.sessions.values()} <= {model.info.version for model in self.host.models}

    @rule(index=st.integers(0, 9))
    def rewarm(self, index: int) -> None:
        """To the newest version, which is fed what is kept."""
        name = self.pick(index)
        told = self.sessions.get(name or "")
        if name is None or told is None or told.holder is None or told.closing:
            return
        self.settle()
        if self.sessions.get(name) is not told:
            return
        source, row = self.place_of(name)
        kept, faults = len(source.history.recent(row)), len(told.holder.replies.faults)
        self.host.receive(told.holder.stream, wire.rewarm([told.handle]))
        self.settle()
        target = self.place_of(name).model
        refused = told.holder.replies.reasons[faults:]
        assert (refused == ["SESSION_LIMIT"]) == (target is not self.host.model(self.info.name))
        if target is not source:
            assert kept >= min(len(told.sent) - told.since, REWIND_STEPS - (told.furthest - len(told.sent)))
            told.version, told.since = target.info.version, len(told.sent) - kept
            told.furthest = len(told.sent)

    def settle(self) -> None:
        """Everything asked for is done and answered."""
        while self.host.ready:
            self.host.tick()
        self.forget_ended()
        for client in self.clients:
            self.collect(client)

    @rule()
    def tick(self) -> None:
        self.host.tick()
        self.forget_ended()

    @precondition(lambda self: self.clients)
    @rule(who=st.integers(0, 2))
    def collect_one(self, who: int) -> None:
        self.collect(self.clients[who % len(self.clients)])

    # what is checked

    def forget_evicted(self) -> None:
        for name in [name for name in self.sessions if self.host.directory.get(f"/{name}") is None]:
            assert self.sessions[name].holder is None, "an attached session was evicted"
            del self.sessions[name]

    def forget_ended(self) -> None:
        for name in [name for name in self.sessions if self.host.directory.get(f"/{name}") is None]:
            told = self.sessions[name]
            if told.holder is not None:
                self.collect(told.holder)
                assert told.is_answered, "a session ended with answers due"
                del told.holder.sessions[told.handle]
            del self.sessions[name]

    def collect(self, client: Client) -> None:
        """Takes what the stream has to send, and checks every prediction in it."""
        drained(client.stream, client.replies, self.clock())
        for fault in client.replies.faults[client.faults_seen :]:
            client.forks_due.pop(fault.handle if fault.handle is not None else -1, None)
        client.faults_seen = len(client.replies.faults)
        for handle in client.forks_due.keys() & client.replies.opened.keys():
            copy = client.forks_due.pop(handle)
            name, step = client.replies.opened[handle]
            assert step == len(copy.sent)
            self.sessions[name], client.sessions[handle] = copy, name
        for answer in client.replies.observed[client.seen :]:
            told = self.told(client, answer)
            history = next(history for history in told.due if len(history) == answer.step)
            told.due.remove(history)
            self.check(answer, told, history)
        client.seen = len(client.replies.observed)
        for answer in client.replies.peeked[client.peeks_seen :]:
            told = self.told(client, answer)
            self.check(answer, told, told.peeks_due.pop(0))
        client.peeks_seen = len(client.replies.peeked)
        for answer in client.replies.rewound[client.rewinds_seen :]:
            told = self.told(client, answer)
            self.check(answer, told, told.rewinds_due.pop(0))
        client.rewinds_seen = len(client.replies.rewound)
        for exported in client.replies.exported[client.exports_seen :]:
            snapshot = self.sessions[client.sessions[exported.handle]].exports_due.pop(0)
            assert exported.step == len(snapshot.history)
            self.snapshots.append((exported.snapshot, snapshot))
        client.exports_seen = len(client.replies.exported)
        for call, continuation in client.replies.continuations.items():
            self.check_continuation(continuation, client.calls[call])

    def told(self, client: Client, answer: wire.Answer) -> Told:
        return self.sessions[client.sessions[answer.handle]]

    def check(self, answer: wire.Answer, told: Told, history: History) -> None:
        assert answer.step == len(history)
        outputs, _ = self.alone(told.version, history[told.since :])
        for name, column in outputs._asdict().items():
            np.testing.assert_allclose(answer.columns[name], np.ravel(column), rtol=1e-5, atol=1e-5)

    def check_continuation(self, continuation: wire.Continuation, of: Snapshot) -> None:
        runtime = cast(WordRuntime, self.served(of.version)[1])
        history = of.history[of.since :]
        for token, probability in zip(continuation.tokens, continuation.probabilities, strict=True):
            _, state = self.alone(of.version, history)
            expected = runtime.log_probabilities(state)[0, token]
            np.testing.assert_allclose(np.log(probability), expected, rtol=1e-4, atol=1e-5)
            history = (*history, token)

    @invariant()
    def in_order(self) -> None:
        self.host.check_integrity()

    def teardown(self) -> None:
        while self.host.ready:
            self.host.tick()
        self.forget_ended()
        for client in self.clients:
            self.collect(client)
            assert client.stream.backlog == 0
            failed = {fault.call for fault in client.replies.faults}
            for call in client.calls:
                assert call in failed or client.replies.continuations[call].done
            assert not client.forks_due
        for told in self.sessions.values():
            assert told.is_answered, "something was never answered"
        for client in self.clients:
            self.host.disconnect(client.stream)
        self.clock.now += DETACH
        self.host.expire()
        self.host.check_integrity()
        assert not any(model.arena.used for model in self.host.models)
        assert len(self.host.directory) == 0


class OnOnnx(Interleavings):
    """The same on a real bundle."""

    def served(self, version: str) -> tuple[ModelInfo, Runtime]:
        info, runtime = _onnx_words(int(version) % 3)
        return replace(info, version=version), runtime


@cache
def _onnx_words(seed: int) -> tuple[ModelInfo, Runtime]:
    with TemporaryDirectory() as folder:
        random_bundle(Path(folder), "next-word", seed=5 + seed)
        loaded = load_models(Settings(models=Path(folder), max_batch=4))[0]
    return loaded.info, loaded.runtime


Interleavings.TestCase.settings = settings(max_examples=150 * LONGER, stateful_step_count=50, deadline=None)
OnOnnx.TestCase.settings = settings(max_examples=20 * LONGER, stateful_step_count=40, deadline=None)
TestInterleavings = Interleavings.TestCase
TestOnOnnx = OnOnnx.TestCase
