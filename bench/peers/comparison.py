"""Runs contestants one after the other, each only if it answers as hiddenstate does."""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.catalog import BUNDLE, STREAMS, Contestant
from bench.peers.load import Load, Measured
from bench.peers.session import Prediction
from bench.processes import BenchError, Started, free_port, started

SESSIONS = (1, 16, 64)
STEPS = len(SESSIONS) + 2
"""How often `measured` tells what comes next, by contestant."""
SESSIONS_IN_MEMORY = 1000
ROOT = Path(__file__).parents[2]
COMPARED_SESSIONS, COMPARED_TOKENS = 3, 12
TOLERANCE = 0.05
"""In nats and in probability: the normaliser of the int8 step is off by hundredths of a nat where it is worst."""
SECONDS_TO_DO_IT = 300

Answers = list[list[Prediction]]


@dataclass
class Outcome:
    """What was measured of one contestant, and what could not be."""

    contestant: Contestant
    loads: dict[int, Measured] = field(default_factory=dict)
    """By sessions."""
    session_bytes: float | None = None
    resident: int | None = None
    """Bytes, with few sessions."""
    failures: list[str] = field(default_factory=list)


class Comparison:
    """One run. `advance` is called with what comes next."""

    def __init__(self, seconds: float, advance: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._advance = advance
        self._vocabulary: int = json.loads((BUNDLE / "config.json").read_text())["network"]["vocabulary_size"]
        rng = np.random.default_rng(0)
        self._sequences = rng.integers(self._vocabulary, size=(COMPARED_SESSIONS, COMPARED_TOKENS)).tolist()
        with server(STREAMS) as one:
            self.expected = self.answers(STREAMS, one)

    def measured(self, contestant: Contestant) -> Outcome:
        """Checks its answers, weighs its sessions and puts the loads on; failures are in the outcome."""
        outcome = Outcome(contestant)
        what = "its answers"
        try:
            with server(contestant) as one:
                self._advance(f"{contestant.name}: {what}")
                check(self.answers(contestant, one), self.expected)
                for sessions in SESSIONS:
                    what = f"{sessions} sessions"
                    self._advance(f"{contestant.name}: {what}")
                    outcome.loads[sessions] = Measured(**self._do("generate", contestant, one, sessions))
            what = "memory"
            self._advance(f"{contestant.name}: {what}")
            with server(contestant) as one:
                weight = self._do("weigh", contestant, one, SESSIONS_IN_MEMORY)
                outcome.resident, outcome.session_bytes = weight["resident"], weight["each"]
        except BenchError as error:
            outcome.failures.append(f"{what}: {error}")
        return outcome

    def answers(self, contestant: Contestant, to: Started) -> Answers:
        """What it predicts after each token of some sequences."""
        found = self._do("answer", contestant, to, COMPARED_SESSIONS, sequences=self._sequences)
        return [[Prediction(*one) for one in session] for session in found]

    def _do(self, what: str, contestant: Contestant, to: Started, sessions: int, **more: object) -> Any:
        """Runs the load generator in the contestant's environment and reads what it prints."""
        load = Load(to.port, to.pid, self._vocabulary, sessions, self._seconds)
        arguments = json.dumps({**asdict(load), **more})
        command = [str(contestant.python), "-m", "bench.peers.load", what, contestant.client, arguments]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_TO_DO_IT)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"nothing after {SECONDS_TO_DO_IT} s") from error
        if done.returncode:
            raise BenchError(done.stderr)
        return json.loads(done.stdout)


@contextmanager
def server(contestant: Contestant) -> Iterator[Started]:
    """Runs a contestant's server, with a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        scratch, port = Path(folder), free_port()
        with started(contestant.command(port, scratch), [port], scratch / "server.log") as one:
            yield one


def check(answers: Answers, expected: Answers) -> None:
    """Raises BenchError where predictions differ from those expected by more than the tolerance."""
    for mine, right in zip(chain.from_iterable(answers), chain.from_iterable(expected), strict=True):
        known = dict(zip(right.top_tokens, right.top_probabilities, strict=True))
        least = min(right.top_probabilities)
        # Words of equal probability may change places, and the last ones be others.
        found = zip(mine.top_tokens, mine.top_probabilities, strict=True)
        pairs = [(mine.surprise, right.surprise), *((one, known.get(token, least)) for token, one in found)]
        if len(pairs) != 1 + len(known) or not all(abs(one - other) <= TOLERANCE for one, other in pairs):
            raise BenchError(f"it answers {mine} instead of {right}")
