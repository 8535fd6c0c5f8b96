"""Sessions on several hosts that share a store: wherever they are, each is a lone model fed its own observations.

Random interleavings of opens, observations, rewinds, disconnects, resumes on any host, evictions, writes that are under
way while other things happen, hosts that die, and streams that go on with sessions they have lost. What a host said to
be durable is never lost.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.server import wire
from tests.server.doubles import LONGER, WORDS, Clock, MixingWords

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.runtimes import Outputs
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.sessions.keeper import Keeper, new_ledger
from hiddenstate_server.sessions.pace import Pace
from hiddenstate_server.stepping.streams import Stream

TOKENS = 12
ROWS = 2
LEASE, DETACH = 3_600.0, 10.0
FLUSH = 0.05
REWIND_STEPS = 6

History = tuple[int, ...]
P = ParamSpec("P")


PICKS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, TOKENS - 1)), min_size=1, max_size=6)
MILLISECONDS = st.sampled_from([0.0, 0.2, 0.5, 1.0, 5.0])
"""A write takes about half of one."""


class Node:
    """A host, and what keeps its sessions."""

    def __init__(self, folder: Path, clock: Clock, loop: asyncio.AbstractEventLoop, every_step: bool) -> None:
        limits = Limits(max_sessions=ROWS, idle_timeout=LEASE, detach_timeout=DETACH, rewind_steps=REWIND_STEPS)
        self.host = Host(limits, Metrics("test"), clock, new_ledger(every_step, 100))
        self.model = self.host.add_model(WORDS, MixingWords(), max_batch=4, max_run=3)
        self.keeper = Keeper(self.host, f"sqlite:///{folder / 'sessions.db'}", Pace(FLUSH, FLUSH, share=1.0))
        self._loop = loop
        loop.run_until_complete(self.keeper.start())
        self._running = loop.create_task(self.keeper.run())

    def receive(self, stream: Stream, request: pb.StreamRequest) -> None:
        if not self.host.receive_single(stream, request.SerializeToString()):
            self._loop.run_until_complete(asyncio.wait_for(self.keeper.receive(stream, request), 30))

    def saved(self) -> None:
        self._loop.run_until_complete(self.keeper.saved(30))

    def write(self, milliseconds: float) -> None:
        """Lets a write begin, and perhaps end."""
        self.host.clock.now += FLUSH  # type: ignore[attr-defined]
        self._loop.run_until_complete(asyncio.sleep(milliseconds / 1000))

    def die(self) -> None:
        """Nothing more happens but what the store is at."""
        self._running.cancel()
        self._loop.run_until_complete(asyncio.gather(self._running, return_exceptions=True))
        self._loop.run_until_complete(self.keeper.close())


@dataclass(eq=False)
class Client:
    """One stream as its client sees it."""

    node: Node
    stream: Stream
    replies: wire.Replies = field(default_factory=wire.Replies)
    sessions: dict[int, str] = field(default_factory=dict)
    seen: int = 0


@dataclass(eq=False)
class Told:
    """A session as its client knows it."""

    holder: Client | None
    handle: int
    sent: list[int] = field(default_factory=list)
    rewinds: int = 0
    positions: dict[tuple[int, int], History] = field(default_factory=lambda: {(0, 0): ()})
    """By number of rewinds and of observations: all that a resumed session can be found at."""
    promised: History = ()
    """What will never be lost."""

    def remember(self) -> None:
        self.positions[self.rewinds, len(self.sent)] = tuple(self.sent)


Where = Callable[Concatenate["Hosts", P], None]


def where(condition: Callable[[Hosts], object]) -> Callable[[Where[P]], Where[P]]:
    """Does nothing unless the condition holds.

    It may depend on how far the writing thread has come. As a precondition it would decide which rule is drawn, and
    Hypothesis takes it for a mistake if the same choices lead to other rules.
    """

    def guarded(work: Where[P]) -> Where[P]:
        @wraps(work)
        def guard(self: Hosts, /, *args: P.args, **kwargs: P.kwargs) -> None:
            if condition(self):
                work(self, *args, **kwargs)

        return guard

    return guarded


class Hosts(RuleBasedStateMachine):
    """Rules are what clients, hosts and time can do."""

    every_step = False

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.runtime = MixingWords()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))  # noqa: S108
        self.loop = asyncio.new_event_loop()
        self.nodes = [self.node() for _ in range(2)]
        self.clients: list[Client] = []
        self.stale: list[tuple[Client, int]] = []
        """Handles of sessions that were resumed elsewhere, as streams that do not know still have them."""
        self.sessions: dict[str, Told] = {}
        self.serial = 0

    def node(self) -> Node:
        return Node(self.folder, self.clock, self.loop, self.every_step)

    @cache  # noqa: B019
    def alone(self, history: History) -> tuple[Outputs, np.ndarray]:
        if not history:
            return self.runtime.initial()
        _, state = self.alone(history[:-1])
        return self.runtime.step(np.array(history[-1:]), state)

    def pick(self, index: int) -> str | None:
        names = sorted(self.sessions)
        return names[index % len(names)] if names else None

    def held(self, client: Client) -> list[str]:
        return sorted(name for name, told in self.sessions.items() if told.holder is client)

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial

    # what clients do

    @initialize()
    def begin(self) -> None:
        for which in range(2):
            self.connect(which)
            self.open(which, 3)
            self.observe(which, [(0, 1), (1, 2), (2, 3), (0, 4)])

    @rule(which=st.integers(0, 1))
    @where(lambda self: len(self.clients) < 4)
    def connect(self, which: int) -> None:
        node = self.nodes[which]
        self.clients.append(Client(node, node.host.connect()))

    @rule(who=st.integers(0, 3), count=st.integers(1, 3))
    @where(lambda self: self.clients)
    def open(self, who: int, count: int) -> None:
        client = self.clients[who % len(self.clients)]
        serials = [self.next_serial() for _ in range(count)]
        names = [f"session-{serial}" for serial in serials]
        client.node.receive(client.stream, wire.opening(serials, WORDS.name, ids=names))
        for handle, name in zip(serials, names, strict=True):
            self.sessions[name], client.sessions[handle] = Told(client, handle), name
        self.collect(client)
        assert set(serials) <= client.replies.opened.keys()

    @rule(who=st.integers(0, 3), picks=PICKS)
    @where(lambda self: self.clients)
    def observe(self, who: int, picks: list[tuple[int, int]]) -> None:
        client = self.clients[who % len(self.clients)]
        held = [self.sessions[name] for name in self.held(client)]
        if not held:
            return
        handles, tokens, steps = [], [], []
        for index, token in picks:
            told = held[index % len(held)]
            told.sent.append(token)
            told.remember()
            handles.append(told.handle)
            tokens.append(token)
            steps.append(len(told.sent))
        client.node.receive(client.stream, wire.words(handles, tokens, steps))

    @rule(index=st.integers(0, 9), token=st.integers(0, TOKENS - 1))
    @where(lambda self: self.stale)
    def observe_stale(self, index: int, token: int) -> None:
        """A stream goes on with a session that is somebody else's by now."""
        client, handle = self.stale[index % len(self.stale)]
        client.node.receive(client.stream, wire.words([handle], [token]))

    @rule(index=st.integers(0, 9), back=st.integers(0, 4), milliseconds=MILLISECONDS)
    def rewind(self, index: int, back: int, milliseconds: float) -> None:
        told = self.sessions.get(self.pick(index) or "")
        if told is None or told.holder is None or back > len(told.sent):
            return
        client = told.holder
        self.answer_all(client.node)
        client.node.write(milliseconds)
        self.collect(client)
        if told.holder is not client:
            return
        faults = len(client.replies.faults)
        target = len(told.sent) - back
        client.node.receive(client.stream, wire.rewind([told.handle], [target], [told.rewinds + 1]))
        self.answer_all(client.node)
        if self.every_step:
            client.node.saved()
        for response in self.taken(client):
            client.replies.add(response)
        if any(fault.handle == told.handle for fault in client.replies.faults[faults:]):
            return
        del told.sent[target:]
        told.rewinds += 1
        told.remember()
        told.promised = told.promised[:target]
        self.check(client.replies.rewound[-1], tuple(told.sent))

    @rule(who=st.integers(0, 3))
    @where(lambda self: self.clients)
    def disconnect(self, who: int) -> None:
        client = self.clients.pop(who % len(self.clients))
        self.collect(client)
        client.node.host.disconnect(client.stream)
        self.gone(client)

    def gone(self, client: Client) -> None:
        for told in self.sessions.values():
            if told.holder is client:
                told.holder = None
        self.stale = [(holder, handle) for holder, handle in self.stale if holder is not client]

    @rule(index=st.integers(0, 9), who=st.integers(0, 3), picks=PICKS)
    @where(lambda self: self.clients)
    def go_on_elsewhere(self, index: int, who: int, picks: list[tuple[int, int]]) -> None:
        """On the host that has it, or on another one."""
        self.resume(index, who)
        self.observe(who, picks)

    def resume(self, index: int, who: int) -> None:
        name = self.pick(index)
        if name is None:
            return
        told, client, handle = self.sessions[name], self.clients[who % len(self.clients)], self.next_serial()
        if told.holder is not None:
            self.collect(told.holder)
            del told.holder.sessions[told.handle]
            self.stale.append((told.holder, told.handle))
        faults = len(client.replies.faults)
        client.node.receive(client.stream, wire.opening([handle], "", ids=[name], mode=pb.OPEN_MODE_RESUME))
        self.collect(client)
        if handle not in client.replies.opened:
            assert [fault.reason for fault in client.replies.faults[faults:] if fault.handle == handle] == [
                "SESSION_NOT_FOUND"
            ]
            assert not told.promised, "a durable session is not there"
            del self.sessions[name]
            return
        _, step = client.replies.opened[handle]
        rewinds = client.replies.rewinds[handle]
        found = told.positions[rewinds, step]
        assert found[: len(told.promised)] == told.promised, "something durable was lost"
        told.sent, told.rewinds = list(found), rewinds
        told.positions = {at: history for at, history in told.positions.items() if at <= (rewinds, step)}
        told.holder, told.handle, client.sessions[handle] = client, handle, name

    @rule(index=st.integers(0, 9), saved=st.booleans(), there_and_back=st.booleans())
    @where(lambda self: len({client.node for client in self.clients}) == 2)
    def move(self, index: int, saved: bool, there_and_back: bool) -> None:
        """To the other host, and perhaps back to the first, which may still remember what was there before."""
        name = self.pick(index)
        if name is None or self.sessions[name].holder is None:
            return
        for _ in range(1 + there_and_back):
            told = self.sessions.get(name)
            if told is None or told.holder is None:
                return
            here = told.holder
            self.observe(self.clients.index(here), [(self.held(here).index(name), self.serial % TOKENS)])
            self.answer_all(here.node)
            if saved:
                here.node.saved()
            self.resume(
                sorted(self.sessions).index(name),
                next(who for who, client in enumerate(self.clients) if client.node is not here.node),
            )

    # what hosts and time do

    @rule(which=st.integers(0, 1), milliseconds=MILLISECONDS)
    def go_on(self, which: int, milliseconds: float) -> None:
        """A tick, and a write that may end in the middle of what comes next."""
        node = self.nodes[which]
        node.host.tick()
        node.write(milliseconds)

    @rule(which=st.integers(0, 1), seconds=st.sampled_from([0.0, DETACH]))
    def keep_house(self, which: int, seconds: float) -> None:
        self.clock.now += seconds
        self.nodes[which].host.expire()

    @rule(which=st.integers(0, 1), busy=st.lists(st.tuples(PICKS, MILLISECONDS), max_size=3))
    def die(self, which: int, busy: list[tuple[list[tuple[int, int]], float]]) -> None:
        """A host is killed in the middle of its work; its clients go on with the other, and it comes back."""
        dead, other = self.nodes[which], self.nodes[1 - which]
        clients = [client for client in self.clients if client.node is dead]
        for picks, milliseconds in busy:
            for client in clients:
                self.observe(self.clients.index(client), picks)
            self.answer_all(dead)
            dead.write(milliseconds)
        lost = [name for client in clients for name in self.held(client)]
        for client in clients:
            self.collect(client)
            self.clients.remove(client)
            self.gone(client)
        dead.die()
        self.nodes[which] = self.node()
        if lost:
            self.clients.append(Client(other, other.host.connect()))
        for name in sorted(lost):
            self.resume(sorted(self.sessions).index(name), len(self.clients) - 1)
            if name in self.sessions:
                self.observe(len(self.clients) - 1, [(self.held(self.clients[-1]).index(name), 0)])
        self.quiesce(other)

    def answer_all(self, node: Node) -> None:
        while node.host.ready:
            node.host.tick()

    def quiesce(self, node: Node) -> None:
        self.answer_all(node)
        node.saved()

    # what is checked

    @rule(who=st.integers(0, 3))
    @where(lambda self: self.clients)
    def collect_one(self, who: int) -> None:
        self.collect(self.clients[who % len(self.clients)])

    def taken(self, client: Client) -> list[pb.StreamResponse]:
        responses = []
        while client.stream.unsent:
            reply, parts, rows = client.stream.take()
            client.stream.sent(parts, rows, self.clock())
            responses.append(pb.StreamResponse.FromString(reply))
        return responses

    def collect(self, client: Client) -> None:
        """Takes what the stream has to send, and checks every prediction of sessions that are the client's."""
        for response in self.taken(client):
            client.replies.add(response)
            for part in response.observed:
                durable = np.frombuffer(part.durable_steps, "<u8").tolist()
                for answer, step in zip(wire.answers(part), durable, strict=True):
                    told = self.sessions.get(client.sessions.get(answer.handle, ""))
                    if told is not None and told.holder is client and told.handle == answer.handle:
                        self.check(answer, tuple(told.sent[: answer.step]))
                        told.promised = max(told.promised, tuple(told.sent[:step]), key=len)
                        if self.every_step:
                            assert step == answer.step
        for fault in client.replies.faults[client.seen :]:
            told = self.sessions.get(client.sessions.get(fault.handle, "")) if fault.handle is not None else None
            if told is not None and told.holder is client and told.handle == fault.handle:
                assert fault.reason == "REWIND_LIMIT", "a session was refused to the client that has it"
        client.seen = len(client.replies.faults)

    def check(self, answer: wire.Answer, history: History) -> None:
        assert answer.step == len(history)
        outputs, _ = self.alone(history)
        for name, column in outputs._asdict().items():
            np.testing.assert_allclose(answer.columns[name], np.ravel(column), rtol=1e-5, atol=1e-5)

    @invariant()
    def in_order(self) -> None:
        for node in self.nodes:
            node.host.check_integrity()
            assert node.model.arena.used <= ROWS + node.host.limits.max_frame_rows

    def teardown(self) -> None:
        for node in self.nodes:
            self.quiesce(node)
        for client in self.clients:
            self.collect(client)
            assert client.stream.backlog == 0
        for told in self.sessions.values():
            if told.holder is not None:
                last = told.holder.replies.of(told.handle)
                resumed_at = told.holder.replies.opened[told.handle][1]
                assert len(told.sent) == resumed_at or (last and last[-1].step >= len(told.sent)) or told.rewinds
        for node in self.nodes:
            node.host.expire()
            self.quiesce(node)
            assert node.model.arena.used <= ROWS
            assert node.keeper.unsaved == 0
            node.host.check_integrity()
            node.die()
        self.loop.close()
        shutil.rmtree(self.folder)


class EveryStep(Hosts):
    """The same where answers wait for the store."""

    every_step = True


Hosts.TestCase.settings = settings(max_examples=60 * LONGER, stateful_step_count=50, deadline=None)
EveryStep.TestCase.settings = settings(max_examples=40 * LONGER, stateful_step_count=50, deadline=None)
TestHosts = Hosts.TestCase
TestEveryStep = EveryStep.TestCase
