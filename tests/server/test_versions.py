"""Whatever versions come, go and shadow, a session's outputs are those of a lone model of the version it is in.

Random interleavings on a host without transport. Histories are kept whole, so a session that has moved equals one that
was always there. Words are sent as text: every other version numbers its vocabulary differently.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.server import wire
from tests.server.doubles import VOCABULARY, WORDS, Clock, MixingWords

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.runtimes import FloatArray, Outputs
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.sessions.rewarming import Moving
from hiddenstate_server.stepping.model import ModelInfo, ServedModel, TextInfo
from hiddenstate_server.stepping.streams import Stream

CAPACITY = 5
DETACH = 10.0
SPELLED = VOCABULARY[2:14]


def info_of(version: int) -> ModelInfo:
    words = VOCABULARY if version % 2 else (*VOCABULARY[:2], *reversed(VOCABULARY[2:]))
    return replace(
        WORDS, version=str(version), text=TextInfo(words, {word: i for i, word in enumerate(words)}, True, 0, 1, r"\w+")
    )


@cache
def runtime_of(version: int) -> MixingWords:
    return MixingWords(seed=version)


@cache
def alone(version: int, history: tuple[str, ...]) -> tuple[Outputs, FloatArray]:
    """What a lone session of this version, fed `history` one by one, has come to."""
    if not history:
        return runtime_of(version).initial()
    _, state = alone(version, history[:-1])
    text = info_of(version).text
    assert text is not None
    return runtime_of(version).step(text.tokens(history[-1:]), state)


@dataclass(eq=False)
class Told:
    """A session as told to the server, and what is not answered yet."""

    handle: int
    version: int
    sent: list[str] = field(default_factory=list)
    histories: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    """By number of rewinds and of observations."""
    rewinds: int = 0
    attached: bool = True

    def remember(self) -> None:
        self.histories[self.rewinds, len(self.sent)] = tuple(self.sent)


class Versions(RuleBasedStateMachine):
    """One client; versions come and go beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        limits = Limits(max_sessions=CAPACITY, detach_timeout=DETACH, rewind_steps=512)
        self.host = Host(limits, Metrics("test"), self.clock)
        self.last_version = 0
        self.serial = 0
        self.sessions: dict[str, Told] = {}
        self.stream: Stream = self.host.connect()
        self.replies = wire.Replies()
        self.moving = Moving(self.host, "pin", "pin")

    @initialize(on_new=st.sampled_from(["pin", "rewarm"]), retire=st.sampled_from(["pin", "rewarm"]))
    def begin(self, on_new: str, retire: str) -> None:
        self.moving = Moving(self.host, on_new, retire)  # type: ignore[arg-type]
        self.appear()
        self.appear()
        self.open(0, 1)
        self.open(1, 0)

    # versions

    @rule()
    def appear(self) -> None:
        if len(self.host.models) < 4:
            self.last_version += 1
            self.host.add_model(info_of(self.last_version), runtime_of(self.last_version), max_batch=2)

    @rule(index=st.integers(0, 3))
    def disappear(self, index: int) -> None:
        model = self.host.models[index % len(self.host.models)]
        if sum(not each.retired for each in self.host.models) > 1:
            model.retired = True

    @rule()
    def keep_house(self) -> None:
        self.moving.go_on()
        self.collect()
        self.host.unload_retired()

    # the client

    @rule(index=st.integers(0, 3), shadow=st.integers(0, 4))
    def open(self, index: int, shadow: int) -> None:
        offered = [int(model.info.version) for model in self.host.models if not model.retired]
        version = offered[index % len(offered)]
        other = offered[shadow] if shadow < len(offered) and offered[shadow] != version else None
        name = f"s{self.serial}"
        frame = wire.opening(
            [self.serial], "words", ids=[name], version=str(version), shadow_version="" if other is None else str(other)
        )
        self.serial += 1
        self.host.receive(self.stream, frame)
        if self.host.directory.get(f"/{name}") is not None:
            self.sessions[name] = Told(self.serial - 1, version)
            self.sessions[name].remember()
        self.collect()

    def attached(self, index: int) -> Told | None:
        held = [told for _, told in sorted(self.sessions.items()) if told.attached]
        return held[index % len(held)] if held else None

    @rule(picks=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(SPELLED)), min_size=1, max_size=8))
    def observe(self, picks: list[tuple[int, str]]) -> None:
        handles, words, steps = [], [], []
        for index, word in picks:
            told = self.attached(index)
            if told is not None:
                told.sent.append(word)
                told.remember()
                handles.append(told.handle)
                words.append(word)
                steps.append(len(told.sent))
        if handles:
            self.host.receive(self.stream, wire.texts(handles, words, steps))

    @rule(index=st.integers(0, 5), back=st.integers(0, 6))
    def rewind(self, index: int, back: int) -> None:
        told = self.attached(index)
        if told is not None:
            to = max(0, len(told.sent) - back)
            del told.sent[to:]
            told.rewinds += 1
            told.remember()
            self.host.receive(self.stream, wire.rewind([told.handle], [to]))

    @rule(index=st.integers(0, 5), version=st.integers(-1, 9))
    def rewarm(self, index: int, version: int) -> None:
        told = self.attached(index)
        if told is not None:
            asked = "" if version < 0 else str(max(1, self.last_version - version))
            self.host.receive(self.stream, wire.rewarm([told.handle], asked))

    @rule()
    def reconnect(self) -> None:
        """The client goes away in the middle of everything, and comes back for some of its sessions."""
        self.collect()
        self.host.disconnect(self.stream)
        self.stream, self.replies = self.host.connect(), wire.Replies()
        for told in self.sessions.values():
            told.attached = False

    @rule(index=st.integers(0, 5))
    def resume(self, index: int) -> None:
        names = [name for name, told in sorted(self.sessions.items()) if not told.attached]
        if not names:
            return
        name = names[index % len(names)]
        told = self.sessions[name]
        told.attached, told.handle = True, self.serial
        self.serial += 1
        self.host.receive(self.stream, wire.opening([told.handle], "", ids=[name], mode=pb.OPEN_MODE_RESUME))
        self.collect()
        _, step = self.replies.opened[told.handle]
        told.rewinds = self.replies.rewinds[told.handle]
        told.sent = list(told.histories[told.rewinds, step])

    @rule(index=st.integers(0, 5))
    def close(self, index: int) -> None:
        told = self.attached(index)
        if told is not None:
            self.host.receive(self.stream, wire.close([told.handle]))
            self.settle()

    @rule(times=st.integers(1, 5))
    def tick(self, times: int) -> None:
        for _ in range(times):
            self.host.tick()
            self.collect()

    # what is checked

    def settle(self) -> None:
        while self.host.ready:
            self.host.tick()
            self.collect()

    def collect(self) -> None:
        """Takes what there is to send. In one tick a session that moved is observed in its new version only."""
        by_handle = {told.handle: told for told in self.sessions.values() if told.attached}
        while self.stream.unsent:
            reply, parts, rows = self.stream.take()
            self.stream.sent(parts, rows, self.clock())
            response = pb.StreamResponse.FromString(reply)
            seen = wire.Replies()
            seen.add(response)
            self.replies.add(response)
            for opened in response.opened:
                for handle in np.frombuffer(opened.handles, "<u4").tolist():
                    if handle in by_handle:
                        by_handle[handle].version = int(opened.version)
            for answer in [*seen.observed, *seen.rewound]:
                told = by_handle[answer.handle]
                possible = [past for (_, step), past in told.histories.items() if step == answer.step]
                assert any(self.equal(answer, told.version, past) for past in possible), (answer, told)
            assert set(seen.reasons) <= {"MODEL_NOT_FOUND", "SESSION_LIMIT"}
        for name in [name for name in self.sessions if self.host.directory.get(f"/{name}") is None]:
            del self.sessions[name]

    def equal(self, answer: wire.Answer, version: int, history: tuple[str, ...]) -> bool:
        outputs, _ = alone(version, history)
        return all(
            np.allclose(answer.columns[name], np.ravel(column), rtol=1e-4, atol=1e-5, equal_nan=True)
            for name, column in outputs._asdict().items()
        )

    @invariant()
    def in_order(self) -> None:
        self.host.check_integrity()

    def state_of(self, model: ServedModel, row: int, told: Told) -> None:
        _, state = alone(int(model.info.version), tuple(told.sent))
        np.testing.assert_allclose(model.arena.states[row], state[0], rtol=1e-4, atol=1e-5)

    def teardown(self) -> None:
        self.settle()
        for name, told in self.sessions.items():
            place = self.host.directory.get(f"/{name}")
            assert place is not None
            if told.attached:
                assert place.model.table.applied[place.row] == len(told.sent)
                self.state_of(place.model, place.row, told)
                twin = place.model.followers.along(place.row)
                if twin is not None:
                    self.state_of(twin.model, twin.row, told)
        self.host.disconnect(self.stream)
        self.clock.now += DETACH
        self.host.expire()
        self.host.check_integrity()
        assert not any(model.arena.used for model in self.host.models)


Versions.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestVersions = Versions.TestCase
