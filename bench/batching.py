"""Natural batching beside a timer: `python -m bench.batching` sweeps the load on both and looks at latency.

64 streams, one session and one observation a message each, arrive as a Poisson process at a growing share of what the
server takes in a closed loop. The server as it is, which steps whatever waits as soon as it is free, and the same with
a timer of 2 ms (`bench.waiting_server`) take turns at every rate.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.load import Load
from bench.open_loop import Traffic, only_interval
from bench.page import SERVER, TIMER, ends_with, progress, publish, run, tidy
from bench.points import batches
from bench.processes import Started, free_port, measured, served
from bench.report import table, verdict
from hiddenstate_server.settings import load
from hiddenstate_server.versions.repository import load_models

MILLISECONDS = 2
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9)
STREAMS, ROUNDS = 64, 3
NATURAL, TIMED = "as soon as it is free", f"a timer of {MILLISECONDS} ms"


@dataclass(frozen=True)
class Server:
    """One of the two."""

    name: str
    started: Started
    metrics_port: int


@dataclass(frozen=True)
class Seen:
    """One server under one load: medians over the rounds."""

    rate: float
    """Observations a second that came."""
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """Of the server, an observation."""
    batch: float
    late_ms: float
    faults: int


@dataclass(frozen=True)
class Sweep:
    """One model's."""

    model: str
    capacity: float
    """Observations a second in a closed loop of as many streams."""
    seen: dict[str, list[Seen]]
    """By server, in the order of SHARES."""


def swept(model: str, vocabulary: int, servers: list[Server], seconds: float, advance: Callable[[str], None]) -> Sweep:
    """Measures every share on every server."""
    natural = servers[0].started
    advance(f"{model}: capacity")
    closed = measured(Load(natural.port, natural.pid, model, vocabulary, STREAMS, 1, seconds))
    capacity = closed.observations / closed.seconds
    seen: dict[str, list[Seen]] = {server.name: [] for server in servers}
    for share in SHARES:
        advance(f"{model}: {share:.0%} of {capacity:,.0f} a second")
        rounds: dict[str, list[Seen]] = {server.name: [] for server in servers}
        for seed in range(ROUNDS):
            for server in servers:
                rounds[server.name].append(once(server, model, vocabulary, share * capacity, seconds / ROUNDS, seed))
        for name, its in rounds.items():
            seen[name].append(Seen(*np.median([list(asdict(one).values()) for one in its], axis=0).tolist()))
    return Sweep(model, capacity, seen)


def once(server: Server, model: str, vocabulary: int, rate: float, seconds: float, seed: int) -> Seen:
    """One load on one server."""
    to = server.started
    traffic = Traffic(to.port, to.pid, model, vocabulary, rate, seconds, STREAMS, seed=seed)
    before = batches(server.metrics_port, model)
    interval = only_interval(traffic)
    after = batches(server.metrics_port, model)
    return Seen(
        rate=interval.answered / interval.at,
        p50_ms=interval.p50_ms,
        p99_ms=interval.p99_ms,
        cpu_us=interval.server_cpu / interval.answered * 1e6,
        batch=(after[0] - before[0]) / (after[1] - before[1]),
        late_ms=interval.late_ms,
        faults=interval.faults,
    )


def page(sweeps: list[Sweep], seconds: float) -> str:
    """The whole page."""
    judged, rows = [], []
    for sweep in sweeps:
        natural, timed = (sweep.seen[name] for name in (NATURAL, TIMED))
        for name in ("p50", "p99"):
            ratios = [
                getattr(one, f"{name}_ms") / getattr(other, f"{name}_ms")
                for one, other in zip(natural, timed, strict=True)
            ]
            for which, ratio in (("worst", max(ratios)), ("median", float(np.median(ratios)))):
                what = f"{sweep.model}, {name} / the timer's, the {which} of {len(SHARES)} loads"
                judged.append([what, f"{ratio:.2f}", "<= 1", verdict(ratio <= 1)])
        for share, one, other in zip(SHARES, natural, timed, strict=True):
            rows.append([sweep.model, f"{share:.0%}", f"{one.rate:,.0f}"])
            for seen in (one, other):
                rows[-1] += [f"{seen.p50_ms:.2f}", f"{seen.p99_ms:.2f}", f"{seen.batch:.1f}", f"{seen.cpu_us:.0f}"]
            rows[-1].append(f"{max(one.late_ms, other.late_ms):.2f}")
    header = ["model", "load", "observations/s", "p50 ms", "p99 ms", "batch", "CPU us"]
    header += ["timer: p50 ms", "p99 ms", "batch", "CPU us", "generator late, p99 ms"]
    return f"""# Natural batching beside a timer of {MILLISECONDS} ms

{STREAMS} streams of one session each; arrivals are a Poisson process, and latency counts from when an observation was
due. A step takes up to {STREAMS}. Loads are shares of what a closed loop reaches. {seconds:g} s a load and server, in
{ROUNDS} turns, of which medians are taken.

{table(["what", "measured", "target", "met"], judged)}

{table(header, rows)}

![Latency and batch size by load](batching.png)
"""


def plot(sweeps: list[Sweep], path: Path) -> None:
    """One row a model: latency by load, and the batches that came of it."""
    figure, axes = plt.subplots(len(sweeps), 2, figsize=(12, 3.8 * len(sweeps)), squeeze=False, layout="constrained")
    for (latency, batch), sweep in zip(axes, sweeps, strict=True):
        for name, color in ((NATURAL, SERVER), (TIMED, TIMER)):
            seen = sweep.seen[name]
            loads = [100 * share for share in SHARES]
            latency.plot(loads, [one.p50_ms for one in seen], "o-", color=color, ms=4, label=f"{name}, median")
            latency.plot(loads, [one.p99_ms for one in seen], "o--", color=color, ms=4, label=f"{name}, 99 %")
            batch.plot(loads, [one.batch for one in seen], "o-", color=color, ms=4, label=name)
        latency.set_yscale("log")
        latency.set_ylim(top=latency.get_ylim()[1] * 5)  # room for the legend
        ends_with(latency.yaxis, " ms")
        latency.set_title(f"{sweep.model}: latency, from when it was due")
        batch.set_title(f"{sweep.model}: observations a step, mean")
        batch.set_ylim(bottom=0)
        for one in (latency, batch):
            finish(one, sweep)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def finish(axes: Axes, sweep: Sweep) -> None:
    """What both have in common."""
    axes.set_xlabel(f"load, % of {sweep.capacity:,.0f} observations/s")
    axes.set_xlim(0, 100)
    tidy(axes)
    axes.legend(loc="upper left", frameon=False)


def main(
    seconds: Annotated[float, typer.Option(help="How long each load is put on each server.", min=0.3)] = 9.0,
    models: Annotated[Path | None, typer.Option(help="Folder of bundles instead of the shipped ones.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for batching.md and batching.png.")] = Path("bench/results"),
) -> None:
    """Sweeps the load on the server, with and without a batching timer, and compares latencies."""
    # Of what each server would find by itself, one might be larger.
    flags = ["--max-batch", str(STREAMS), *(["--models", str(models)] if models else [])]
    known = [model.info for model in load_models(load(flags))]
    waiting = [sys.executable, "-m", "bench.waiting_server", str(MILLISECONDS)]
    ports = free_port(), free_port()
    with tempfile.TemporaryDirectory() as scratch, progress(len(known) * (1 + len(SHARES))) as advance:
        folders = [Path(scratch) / name for name in ("natural", "timed")]
        for folder in folders:
            folder.mkdir()
        with (
            served(folders[0], *flags, metrics_port=ports[0]) as natural,
            served(folders[1], *flags, metrics_port=ports[1], program=waiting) as timed,
        ):
            servers = [Server(NATURAL, natural, ports[0]), Server(TIMED, timed, ports[1])]
            sweeps = [
                swept(info.name, len(info.text.vocabulary) if info.text else 0, servers, seconds, advance)
                for info in known
            ]
    publish("batching", page(sweeps, seconds), out)
    plot(sweeps, out / "batching.png")


if __name__ == "__main__":
    run(main)
