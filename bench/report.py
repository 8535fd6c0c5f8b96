"""A run's results as a markdown page and a plot."""

import platform
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.points import Point, Results

MOST_CPU_RATIO = 1.15
MOST_P99_RATIO = 1.3
JUDGED_STREAMS = 64
LEAST_ENGINE_SHARE = {"next-value": 0.75, "next-word": 0.85}
JUDGED_ROWS = 1024
SERVER, ECHO, ENGINE = "#3b6ea5", "#b8b8b8", "#e0913a"


def is_single(point: Point) -> bool:
    """Whether each frame has one observation."""
    return point.shape.rows == 1


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table, numbers right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratios(results: Results) -> str:
    """What the targets are about: the server against its two parts."""
    rows = []
    for point in results.points:
        load = f"{point.model}, {point.shape.name}"
        if is_single(point):
            met = verdict(point.cpu_ratio <= MOST_CPU_RATIO)
            rows.append([load, "CPU / (echo + engine)", f"{point.cpu_ratio:.2f}", f"<= {MOST_CPU_RATIO}", met])
            if point.shape.streams == JUDGED_STREAMS:
                met = verdict(point.p99_ratio <= MOST_P99_RATIO)
                what = "p99 / (echo's + two steps)"
                rows.append([load, what, f"{point.p99_ratio:.2f}", f"<= {MOST_P99_RATIO}", met])
            if point.paused:
                rows.append([load, "the same, engine without pauses", f"{point.tight_cpu_ratio:.2f}", "", ""])
            continue
        shares = {"observations/s / engine's": point.rate_share, "per CPU second / engine's": point.cpu_share}
        for what, share in shares.items():
            target, met = "", ""
            least = LEAST_ENGINE_SHARE.get(point.model)
            if point.shape.rows == JUDGED_ROWS and least is not None:
                target, met = f">= {least}", verdict(share >= least)
            rows.append([load, what, f"{share:.2f}", target, met])
    return table(["load", "ratio", "measured", "target", "met"], rows)


def verdict(met: bool) -> str:
    """In a table."""
    return "yes" if met else "**no**"


def rates(results: Results) -> str:
    """Throughput and latency of every load."""
    rows = [
        [
            f"{point.model}, {point.shape.name}",
            f"{point.rate:,.0f}",
            *(f"{value:.2f}" for value in point.server.latency_ms.values()),
            f"{point.echo.observations / point.echo.seconds:,.0f}",
            *(f"{value:.2f}" for value in point.echo.latency_ms.values()),
        ]
        for point in results.points
    ]
    quantiles = list(results.points[0].server.latency_ms)
    header = ["load", "observations/s", *(f"{name} ms" for name in quantiles)]
    return table([*header, "echo/s", *(f"echo {name} ms" for name in quantiles)], rows)


def cpu(results: Results) -> str:
    """CPU of every load: the server, its parts, and whether the generator kept up."""
    rows = [
        [
            f"{point.model}, {point.shape.name}",
            f"{point.server_cpu:.1f}",
            f"{point.echo_cpu:.1f}",
            f"{point.engine_cpu:.1f}",
            f"{point.batch:.1f}",
            f"{point.server.server_cpu / point.server.seconds:.0%}",
            f"{point.server.generator_cpu / point.server.seconds:.0%}",
        ]
        for point in results.points
    ]
    header = ["load", "server us", "echo us", "engine us", "mean batch", "server busy", "generator busy"]
    return table(header, rows)


def memory(results: Results) -> str:
    """Memory of a session, and the engine alone at its best."""
    rows = [
        [
            name,
            f"{results.session_bytes[name]:,.0f}",
            f"{engine.state_bytes:,}",
            f"{engine.best_rate:,.0f}",
            f"{1e6 / engine.clock[1]:,.0f}",
        ]
        for name, engine in results.engines.items()
    ]
    header = ["model", "bytes a session", "of them state", "engine alone, steps/s", "at batch 1, steps/s"]
    return table(header, rows)


def page(results: Results, seconds: float) -> str:
    """The whole page."""
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"""# Benchmark

{when}, {platform.machine()}, Python {platform.python_version()}, {seconds:g} s a load. The generator, the server and
a bare grpc.aio + uvloop echo server that answers with the same bytes are processes of their own; the engine alone
steps in process. Loops are closed: each stream keeps one frame on its way. CPU is user and system time of the whole
server process, in microseconds an observation; the engine's is taken at the mean batch size the server had, and its
throughput at its best one. On one stream each step follows a round trip, and caches go cold in it: there the engine
alone pauses before each step too, and the ratio to an engine in a tight loop stands below it. What else runs on the
machine disturbs throughput more than CPU.

## Against the targets
{ratios(results)}

## Throughput and latency
{rates(results)}

## CPU an observation
{cpu(results)}

## Memory and the engine
{memory(results)}

![CPU and throughput](bench.png)
"""


def plot(results: Results, path: Path) -> None:
    """One row a model: CPU of single observations beside their parts, throughput of frames beside the engine."""
    models = list(results.engines)
    figure, axes = plt.subplots(len(models), 2, figsize=(12, 3.6 * len(models)), squeeze=False, layout="constrained")
    for row, model in zip(axes, models, strict=True):
        mine = [point for point in results.points if point.model == model]
        plot_cpu(row[0], [point for point in mine if is_single(point)])
        plot_rate(row[1], [point for point in mine if not is_single(point)])
        row[0].set_title(f"{model}: CPU an observation, singles")
        row[1].set_title(f"{model}: throughput, frames")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_cpu(axes: Axes, points: list[Point]) -> None:
    """Bars of microseconds: the server, and echo + engine on top of each other."""
    places = np.arange(len(points))
    echo = np.array([point.echo_cpu for point in points])
    engine = np.array([point.engine_cpu for point in points])
    bars = axes.bar(places - 0.2, [point.server_cpu for point in points], 0.36, color=SERVER, label="server")
    axes.bar(places + 0.2, echo, 0.36, color=ECHO, label="echo server")
    axes.bar(places + 0.2, engine, 0.36, bottom=echo, color=ENGINE, label="engine alone")
    axes.bar_label(bars, [f"{point.cpu_ratio:.2f}x" for point in points])
    axes.set_ylabel("microseconds")
    finish(axes, points)


def plot_rate(axes: Axes, points: list[Point]) -> None:
    """Bars of observations a second: the server, and the engine alone."""
    places = np.arange(len(points))
    bars = axes.bar(places - 0.2, [point.rate for point in points], 0.36, color=SERVER, label="server")
    axes.bar(places + 0.2, [point.engine.best_rate for point in points], 0.36, color=ENGINE, label="engine alone")
    axes.bar_label(bars, [f"{point.rate_share:.0%}" for point in points])
    axes.set_ylabel("observations/s")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    finish(axes, points)


def finish(axes: Axes, points: list[Point]) -> None:
    """Names the bars, and puts the legend where none of them is."""
    axes.set_xticks(np.arange(len(points)), [point.shape.name for point in points])
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.25)
    axes.legend(loc="upper right", ncols=3, frameon=False)
