"""What it costs to take observations back: `python -m bench.rewind` steps the shipped models without any transport.

A session observes, goes back and goes on in the ways people do, and the CPU of each rewind is taken, the replay
included. Kept states and a replay stand beside the ring of all states that would need a single step.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from bench.page import progress, publish, run
from bench.report import table
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server import logs
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.settings import load
from hiddenstate_server.versions.repository import LoadedModel, load_models

SESSIONS, OBSERVED = 20, 300
HANDLE = bytes(4)


class Cost(NamedTuple):
    """Of rewinds, on average."""

    milliseconds: float
    steps: float


class Typist:
    """A new session of one model, and what its rewinds took."""

    def __init__(self, host: Host, model: LoadedModel, random: np.random.Generator) -> None:
        self._host, self._model, self._random = host, model, random
        self._stream = host.connect()
        self._send(pb.StreamRequest(open=pb.Open(handles=HANDLE, model=model.info.name, mode=pb.OPEN_MODE_CREATE)))
        self.step = 0
        self.costs: list[Cost] = []
        # Where it is between two kept states is left to chance.
        self.observe(OBSERVED + int(random.integers(0, 130)))

    def observe(self, count: int) -> None:
        """Goes on, one observation a tick, as somebody types."""
        for _ in range(count):
            frame = pb.Observe(handles=HANDLE)
            if self._model.info.text:
                frame.tokens = self._random.integers(0, len(self._model.info.text.vocabulary), 1, "<i4").tobytes()
            else:
                frame.values = self._random.normal(20.0, 5.0, len(self._model.info.columns)).astype("<f8").tobytes()
            self._send(pb.StreamRequest(observe=frame))
        self.step += count

    def rewind(self, count: int) -> None:
        """Takes observations back."""
        self.step -= count
        replayed, begun = self._replayed, time.thread_time()
        steps = np.array([self.step], "<u8").tobytes()
        self._send(pb.StreamRequest(rewind=pb.Rewind(handles=HANDLE, steps=steps)))
        self.costs.append(Cost((time.thread_time() - begun) * 1e3, self._replayed - replayed))

    def close(self) -> None:
        """Gives its place back."""
        self._send(pb.StreamRequest(close=pb.Close(handles=HANDLE)))
        self._host.disconnect(self._stream)

    @property
    def _replayed(self) -> float:
        info = self._model.info
        labels = {"model": info.name, "version": info.version}
        return self._host.metrics.registry.get_sample_value("hiddenstate_replayed_total", labels) or 0.0

    def _send(self, frame: pb.StreamRequest) -> None:
        self._host.receive(self._stream, frame)
        while self._host.ready:
            self._host.tick()
        while self._stream.unsent:
            _, parts, rows = self._stream.take()
            self._stream.sent(parts, rows, self._host.clock())


def first(typist: Typist) -> None:
    """The first time."""
    typist.rewind(1)


def replace(typist: Typist) -> None:
    """The last one is replaced again and again, with some more between."""
    typist.rewind(1)
    typist.costs.clear()
    for _ in range(10):
        typist.observe(5)
        typist.rewind(1)


def backspaces(typist: Typist) -> None:
    """One after the other, as far as it goes."""
    for _ in range(64):
        typist.rewind(1)


def sentences(typist: Typist) -> None:
    """The last 64 at once."""
    typist.rewind(64)


WAYS: dict[str, Callable[[Typist], None]] = {
    "1, the first time": first,
    "1, then 5 more, again and again": replace,
    "1, 64 times in a row": backspaces,
    "64 at once": sentences,
}


def measured(model: LoadedModel, way: Callable[[Typist], None]) -> Cost:
    """The mean of all rewinds of some sessions."""
    host = Host(Limits(max_sessions=16 * SESSIONS), Metrics("bench"), time.monotonic)
    host.add_model(*model)
    random, costs = np.random.default_rng(0), []
    for _ in range(SESSIONS):
        typist = Typist(host, model, random)
        way(typist)
        typist.close()
        costs += typist.costs
    return Cost(*np.mean(costs, axis=0))


def page(costs: list[list[str]]) -> str:
    """The whole page."""
    return f"""# Taking observations back

Sessions of the shipped models, stepped without transport; CPU of a rewind with its replay, the mean of {SESSIONS}
sessions.

{table(["model", "taken back", "CPU ms", "steps replayed"], costs)}
"""


def main(
    out: Annotated[Path, typer.Option(help="Folder for rewind.md.")] = Path("bench/results"),
) -> None:
    """Measures every way of going back with every shipped model."""
    logs.configure("console", "warning")
    rows = []
    models = load_models(load(["--max-batch", "16"]))
    with progress(len(models) * len(WAYS)) as advance:
        for model in models:
            for name, way in WAYS.items():
                advance(f"{model.info.name}: {name}")
                cost = measured(model, way)
                rows.append([model.info.name, name, f"{cost.milliseconds:.2f}", f"{cost.steps:.1f}"])
    publish("rewind", page(rows), out)


if __name__ == "__main__":
    run(main)
