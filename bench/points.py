"""What is measured: every load on the real server, the same on an echo server, and the engine alone."""

import json
import math
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from bench.load import Load, Measured
from bench.processes import Started, free_port, measured, python, started

BATCH_SIZE = "hiddenstate_batch_size_rows"


class Shape(NamedTuple):
    """How observations are spread over streams and frames."""

    name: str
    streams: int
    rows: int


SHAPES = (
    Shape("1 stream, singles", 1, 1),
    Shape("16 streams, singles", 16, 1),
    Shape("64 streams, singles", 64, 1),
    Shape("256 streams, singles", 256, 1),
    Shape("16 streams, frames of 64", 16, 64),
    Shape("4 streams, frames of 1024", 4, 1024),
)
STEPS = len(SHAPES) + 1
"""How often `Bench.run` tells what comes next, by model."""
ROUNDS = 3
"""The server and the echo server take turns, so that what slows the machine for a while slows both."""
MOST_PROCESSES = 4
"""Of the load generator, for streams of their own clients."""
MEMORY = Shape("memory", 4, 16_000)


class EngineAlone(NamedTuple):
    """One model's engine in process."""

    vocabulary: int
    state_bytes: int
    cpu: dict[int, float]
    """Microseconds a row, by batch size."""
    clock: dict[int, float]
    """The same by the clock."""
    paused_cpu: float
    """CPU microseconds of a step of one row that follows a pause."""

    def cpu_at(self, batch: float) -> float:
        """CPU microseconds a row in batches of this mean size."""
        sizes, costs = zip(*sorted(self.cpu.items()), strict=True)
        return float(np.interp(math.log2(batch), np.log2(sizes), costs))

    def step_ms(self, batch: float) -> float:
        """Milliseconds a step of this mean size takes by the clock."""
        sizes, costs = zip(*sorted(self.clock.items()), strict=True)
        return batch * float(np.interp(math.log2(batch), np.log2(sizes), costs)) / 1e3

    @property
    def best_cpu(self) -> float:
        """CPU microseconds a row at the best batch size."""
        return min(self.cpu.values())

    @property
    def best_rate(self) -> float:
        """Rows a second at the best batch size."""
        return 1e6 / min(self.clock.values())


@dataclass(frozen=True)
class Point:
    """One load on one model, beside its two parts."""

    model: str
    shape: Shape
    server: Measured
    echo: Measured
    engine: EngineAlone
    batch: float
    """Mean rows the server stepped together."""

    @property
    def rate(self) -> float:
        """Observations a second."""
        return self.server.observations / self.server.seconds

    @property
    def server_cpu(self) -> float:
        """Microseconds of the server an observation."""
        return self.server.server_cpu / self.server.observations * 1e6

    @property
    def echo_cpu(self) -> float:
        """Microseconds of the echo server an observation."""
        return self.echo.server_cpu / self.echo.observations * 1e6

    @property
    def paused(self) -> bool:
        """Whether every step follows a pause: one stream that sends one observation waits for its answer first."""
        return self.shape.streams * self.shape.rows == 1

    @property
    def engine_cpu(self) -> float:
        """Microseconds of the engine alone an observation, at the batch size the server had, paused as it was."""
        return self.engine.paused_cpu if self.paused else self.tight_engine_cpu

    @property
    def tight_engine_cpu(self) -> float:
        """The same in a loop without pauses."""
        return self.engine.cpu_at(self.batch)

    @property
    def cpu_ratio(self) -> float:
        """Server over echo + engine; 1 would be an ideal server."""
        return self.server_cpu / (self.echo_cpu + self.engine_cpu)

    @property
    def tight_cpu_ratio(self) -> float:
        """The same with the engine in a loop without pauses."""
        return self.server_cpu / (self.echo_cpu + self.tight_engine_cpu)

    @property
    def p99_ratio(self) -> float:
        """99th percentile over the echo server's and two steps of the engine."""
        return self.server.latency_ms["p99"] / (self.echo.latency_ms["p99"] + 2 * self.engine.step_ms(self.batch))

    @property
    def rate_share(self) -> float:
        """Throughput over that of the engine alone at its best batch size."""
        return self.rate / self.engine.best_rate

    @property
    def cpu_share(self) -> float:
        """The same for observations per second of CPU, which other programs on the machine disturb less."""
        return self.engine.best_cpu / self.server_cpu


@dataclass(frozen=True)
class Results:
    """Everything a run found."""

    points: list[Point]
    session_bytes: dict[str, float]
    """Resident bytes a session, by model."""
    engines: dict[str, EngineAlone]


class Bench:
    """Runs everything, calling `advance` with what comes next. `folder` takes logs."""

    def __init__(self, models: Path | None, seconds: float, folder: Path, advance: Callable[[str], None]) -> None:
        self._flags = ["--models", str(models)] if models else []
        self._seconds = seconds
        self._folder = folder
        self._advance = advance

    def engines_alone(self) -> dict[str, EngineAlone]:
        """Every model's engine."""
        self._advance("engines alone")
        found = python("bench.engine", 2 * self._seconds, *self._flags)
        return {name: engine_alone(costs) for name, costs in found.items()}

    def run(self, engines: dict[str, EngineAlone]) -> Results:
        """Every shape on each of these models."""
        metrics_port = free_port()
        with self._server(metrics_port) as server:
            points = [
                self._point(server, metrics_port, name, engine, shape)
                for name, engine in engines.items()
                for shape in SHAPES
            ]
        session_bytes = {name: self._session_bytes(name, engine) for name, engine in engines.items()}
        return Results(points, session_bytes, engines)

    def _point(self, server: Started, metrics_port: int, model: str, engine: EngineAlone, shape: Shape) -> Point:
        self._advance(f"{model}: {shape.name}")
        before = batches(metrics_port, model)
        first = measured(self._load(server, model, engine, shape))
        on_server, on_echo = [first], list[Measured]()
        with self._echo(first) as echo:
            for _ in range(ROUNDS):
                on_server.append(measured(self._load(server, model, engine, shape)))
                on_echo.append(measured(self._load(echo, model, engine, shape, opens=False)))
        after = batches(metrics_port, model)
        batch = (after[0] - before[0]) / (after[1] - before[1])
        return Point(model, shape, typical(on_server[1:]), typical(on_echo), engine, batch)

    def _load(self, to: Started, model: str, engine: EngineAlone, shape: Shape, *, opens: bool = True) -> Load:
        return Load(
            port=to.port,
            pid=to.pid,
            model=model,
            vocabulary=engine.vocabulary,
            streams=shape.streams,
            rows=shape.rows,
            seconds=self._seconds / ROUNDS,
            opens=opens,
            processes=min(shape.streams, MOST_PROCESSES),
        )

    def _server(self, metrics_port: int) -> AbstractContextManager[Started]:
        program = Path(sys.executable).with_name("hiddenstate-server")
        port = free_port()
        flags = ["--port", str(port), "--metrics-port", str(metrics_port), "--log-level", "warning"]
        flags += ["--state-folder", str(self._folder / "state")]
        return started([program, *flags, *self._flags], [port, metrics_port], self._folder / "server.log")

    @contextmanager
    def _echo(self, on_server: Measured) -> Iterator[Started]:
        """An echo server that answers as the server did."""
        replies = self._folder / "replies.json"
        replies.write_text(json.dumps(on_server.replies))
        port = free_port()
        command = [sys.executable, "-m", "bench.echo", str(port), str(replies)]
        with started(command, [port], self._folder / "echo.log") as echo:
            yield echo

    def _session_bytes(self, model: str, engine: EngineAlone) -> float:
        self._advance(f"{model}: memory of {MEMORY.streams * MEMORY.rows:,} sessions")
        with self._server(free_port()) as server:
            load = self._load(server, model, engine, MEMORY)
            growth: int = python("bench.memory", json.dumps(asdict(replace(load, processes=1))))
        return growth / (MEMORY.streams * MEMORY.rows)


def typical(rounds: list[Measured]) -> Measured:
    """The round with the median CPU an observation: a shared machine disturbs some rounds, seldom most."""
    return sorted(rounds, key=lambda one: one.server_cpu / one.observations)[len(rounds) // 2]


def engine_alone(costs: dict[str, Any]) -> EngineAlone:
    """From what `bench.engine` prints."""
    cpu, clock = ({int(size): cost for size, cost in costs[name].items()} for name in ("cpu", "clock"))
    return EngineAlone(costs["vocabulary"], costs["state_bytes"], cpu, clock, costs["paused_cpu"])


def batches(metrics_port: int, model: str) -> tuple[float, float]:
    """Rows and steps the server has counted for a model."""
    with urllib.request.urlopen(f"http://localhost:{metrics_port}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families if family.name == BATCH_SIZE for sample in family.samples]
    mine = {sample.name: sample.value for sample in samples if sample.labels["model"] == model}
    return mine.get(f"{BATCH_SIZE}_sum", 0.0), mine.get(f"{BATCH_SIZE}_count", 0.0)
