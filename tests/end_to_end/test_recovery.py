"""The SDK's protocol against a real host and store, with kills and cuts at any moment, and no transport between them.

Whatever happens, each session is a lone model fed its own observations: nothing is lost, nothing applied twice, and
nothing that was taken back comes again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tests.server.doubles import WORDS, Clock, MixingWords

from hiddenstate.calls import Call, Kind, Session, Waited, Wish
from hiddenstate.errors import AnswersLost
from hiddenstate.protocol import Protocol
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.runtimes import WordOutputs
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.sessions.keeper import Keeper, new_ledger
from hiddenstate_server.sessions.pace import Pace
from hiddenstate_server.stepping.streams import Stream

TOKENS = 12
SESSIONS, CLIENTS = 6, 2
EVENTS = 3000
FLUSH = 0.05
PATIENCE = 3000
"""Rounds until everything must be answered."""


class Server:
    """A host that keeps sessions in a file; killed, it comes back with what the file has."""

    def __init__(self, folder: Path, limits: Limits, *, every_step: bool) -> None:
        self._folder, self._limits, self._every_step = folder, limits, every_step
        self._loop = asyncio.new_event_loop()
        self.clock = Clock()
        self._start()

    def _start(self) -> None:
        self.host = Host(self._limits, Metrics("test"), self.clock, new_ledger(self._every_step, 100))
        self.host.add_model(WORDS, MixingWords(), max_batch=4)
        self._keeper = Keeper(self.host, f"sqlite:///{self._folder / 'sessions.db'}", Pace(FLUSH, FLUSH, share=1.0))
        self._loop.run_until_complete(self._keeper.start())
        self._keeping = self._loop.create_task(self._keeper.run())

    def receive(self, stream: Stream, frame: pb.StreamRequest) -> None:
        if not self.host.receive_single(stream, frame.SerializeToString()):
            self._loop.run_until_complete(asyncio.wait_for(self._keeper.receive(stream, frame), 30))

    def take(self, stream: Stream) -> pb.StreamResponse:
        reply, parts, rows = stream.take()
        stream.sent(parts, rows, self.clock())
        return pb.StreamResponse.FromString(reply)

    def write(self, milliseconds: float) -> None:
        """Lets a write begin, and perhaps end."""
        self.clock.now += FLUSH
        self._loop.run_until_complete(asyncio.sleep(milliseconds / 1000))

    def kill(self) -> None:
        self._stop()
        self._start()

    def _stop(self) -> None:
        self._keeping.cancel()
        self._loop.run_until_complete(asyncio.gather(self._keeping, return_exceptions=True))
        self._loop.run_until_complete(self._keeper.close())

    def close(self) -> None:
        self._stop()
        self._loop.close()


@dataclass(eq=False)
class Client:
    """One SDK client; frames wait on either side of the wire until somebody moves them."""

    server: Server
    protocol: Protocol = field(default_factory=Protocol)
    stream: Stream | None = None
    to_server: list[pb.StreamRequest] = field(default_factory=list)
    to_client: list[pb.StreamResponse] = field(default_factory=list)

    def send(self) -> None:
        self.stream = self.stream or self.server.host.connect()
        self.to_server += self.protocol.frames(self.server.clock.now)

    def deliver(self) -> None:
        if self.stream is not None and self.to_server:
            self.server.receive(self.stream, self.to_server.pop(0))

    def answer(self) -> None:
        if self.stream is not None and self.stream.unsent:
            self.to_client.append(self.server.take(self.stream))

    def receive(self) -> list[Waited]:
        if not self.to_client:
            return []
        finished = self.protocol.receive(self.to_client.pop(0), self.server.clock.now)
        assert self.protocol.broken is None
        return finished

    def lose(self, *, answers_too: bool) -> Iterator[Waited]:
        """The connection is gone, and what was on its way to the server; perhaps what was on its way back."""
        self.stream = None
        self.to_server.clear()
        if answers_too:
            self.to_client.clear()
        while self.to_client:
            yield from self.receive()
        self.protocol.connection_lost()
        yield from self.protocol.take_finished()


@dataclass(eq=False)
class Life:
    """One session, what is in its state, and the call it waits for."""

    client: Client
    session: Session
    call: Call | None
    inputs: list[int] = field(default_factory=list)
    furthest: int = 0

    def settle(self, call: Call) -> None:
        """The call it waited for is answered, as a lone model answers."""
        self.call = None
        for error in call.errors.values():
            assert isinstance(error, AnswersLost), error
        if call.kind is not Kind.OPEN and not call.errors:
            columns, alone = call.columns(), lone_answers(self.inputs)
            for row, step in enumerate(columns.steps.tolist()):
                wanted = alone[step]
                np.testing.assert_allclose(columns.surprises[row], wanted.surprises[0], rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(columns.top_probabilities[row], wanted.top_probabilities[0], atol=1e-5)
        assert self.client.protocol.step(self.session) == len(self.inputs)


def lone_answers(inputs: list[int]) -> list[WordOutputs]:
    """Before the first, and after each."""
    runtime = MixingWords()
    outputs, state = runtime.initial()
    answers = [outputs]
    for token in inputs:
        outputs, state = runtime.step(np.array([token]), state)
        answers.append(outputs)
    return answers  # type: ignore[return-value]


class World:
    """Clients, their sessions, and a server; one thing happens at a time."""

    def __init__(self, folder: Path, seed: int, *, every_step: bool, rows: int, rewind_steps: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311
        self.rewind_steps = rewind_steps
        limits = Limits(max_sessions=rows, idle_timeout=3600.0, rewind_steps=rewind_steps)
        self.server = Server(folder, limits, every_step=every_step)
        self.clients = [Client(self.server) for _ in range(CLIENTS)]
        self.lives = []
        for number in range(SESSIONS):
            client = self.clients[number % CLIENTS]
            call, (session,) = client.protocol.open(Wish(WORDS.name), [f"session-{number}" if number % 2 else ""])
            self.lives.append(Life(client, session, call))
        # How often what happens: from long quiet lives to hardly any progress between two kills.
        self.rewinds, self.bursts = self.rng.choice([0.05, 0.2, 0.5]), self.rng.choice([0.05, 0.3, 0.5])
        self.longest = self.rng.choice([6, 20, 90])
        kills, cuts = self.rng.choice([1, 4, 14]), self.rng.choice([1, 4, 16])
        self.events = {
            self.call: 600, self.send: 400, self.deliver: 300, self.tick: 260, self.write: 120, self.answer: 160,
            self.receive: 140, self.cut: cuts, self.kill: kills,
        }  # fmt: skip

    def run(self) -> None:
        for event in self.rng.choices(list(self.events), list(self.events.values()), k=EVENTS):
            event()
            self.server.host.check_integrity()
        self.quiesce()
        for life in self.lives:
            life.call = life.client.protocol.ask(Kind.PEEK, [life.session])
        self.quiesce()

    def finished(self, calls: Iterator[Waited] | list[Waited]) -> None:
        for call in calls:
            for life in self.lives:
                if isinstance(call, Call) and life.call is call:
                    life.settle(call)

    def some_client(self) -> Client:
        return self.rng.choice(self.clients)

    # what can happen

    def call(self) -> None:
        life = self.rng.choice(self.lives)
        protocol, before = life.client.protocol, len(life.inputs)
        if life.call is not None:
            return
        kind = self.rng.random()
        back = min(before - max(0, life.furthest - self.rewind_steps), 8)
        if kind < self.rewinds and back > 0:
            count = self.rng.randint(1, back)
            del life.inputs[before - count :]
            life.call = protocol.rewind(life.session, count)
        elif kind < self.rewinds + 0.08:
            life.call = protocol.ask(Kind.PEEK, [life.session])
        else:
            count = self.rng.randint(2, self.longest) if kind > 1 - self.bursts else 1
            tokens = [self.rng.randrange(TOKENS) for _ in range(count)]
            life.inputs += tokens
            life.furthest = max(life.furthest, len(life.inputs))
            life.call = protocol.observe(life.session, np.array(tokens, np.int32))

    def send(self) -> None:
        self.some_client().send()

    def deliver(self) -> None:
        self.some_client().deliver()

    def tick(self) -> None:
        self.server.host.tick()

    def write(self) -> None:
        self.server.write(self.rng.choice([0, 0.2, 0.5, 1, 2, 5]))

    def answer(self) -> None:
        self.some_client().answer()

    def receive(self) -> None:
        self.finished(self.some_client().receive())

    def cut(self) -> None:
        client = self.some_client()
        if client.stream is not None:
            self.server.host.disconnect(client.stream)
            self.finished(client.lose(answers_too=self.rng.random() < 0.5))

    def kill(self) -> None:
        for _ in range(self.rng.choice([1, 1, 2])):
            self.server.kill()
        for client in self.clients:
            self.finished(client.lose(answers_too=self.rng.random() < 0.5))

    def quiesce(self) -> None:
        """Lets everything be answered."""
        for _ in range(PATIENCE):
            for client in self.clients:
                client.send()
                while client.to_server:
                    client.deliver()
            while self.server.host.ready:
                self.tick()
            self.server.write(0.5)
            for client in self.clients:
                client.answer()
                while client.to_client:
                    self.finished(client.receive())
            if all(life.call is None for life in self.lives):
                return
        raise AssertionError("some calls were never answered")


@pytest.fixture(autouse=True)
def small_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the SDK look all the time for observations that it need not keep."""
    monkeypatch.setattr("hiddenstate.retention._SMALLEST", 8)


@pytest.mark.parametrize("every_step", [False, True], ids=["behind", "every-step"])
@pytest.mark.parametrize(("rows", "rewind_steps"), [(50, 64), (4, 6)], ids=["roomy", "crowded"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 6])
def test_sessions_come_through(tmp_path: Path, seed: int, rows: int, rewind_steps: int, every_step: bool) -> None:
    world = World(tmp_path, seed, every_step=every_step, rows=rows, rewind_steps=rewind_steps)
    try:
        world.run()
    finally:
        world.server.close()
