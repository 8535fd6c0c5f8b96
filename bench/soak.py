"""Half an hour at 70 % load: `python -m bench.soak --minutes 30` watches memory, latency and errors.

Capacity is measured first, in a closed loop of each model. Then both get half of that load at once, as Poisson
processes of observations, one a message (`bench.open_loop`), while sessions are closed, opened, copied and rewound.
Every answer's step is compared with the one that is due. Before that so many sessions are opened and closed that the
server's list of ended ones is full: else it would fill meanwhile.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import uvloop
from matplotlib import pyplot as plt

from bench.holder import FRAME, Holder
from bench.load import Load
from bench.open_loop import Interval, Traffic, intervals
from bench.page import SERVER, TIMER, ends_with, progress, publish, run, tidy
from bench.processes import BenchError, measured, served
from bench.report import table, verdict
from bench.trend import Trend, growth, trend
from hiddenstate_server.settings import load
from hiddenstate_server.stepping.model import ModelInfo
from hiddenstate_server.versions.repository import load_models

STREAMS, SESSIONS = 32, 8
"""Of each model, and of each stream."""
CHURN = 10.0
"""Sessions of each model a second that something happens to."""
ENDED = 100_000
INTERVALS, SHORTEST_INTERVAL = 180, 1.0
SECONDS_OF_CAPACITY = 5.0
WARM_UP = 0.1
"""Of the whole, before anything is counted."""
MOST_GROWTH = 0.01
"""Of resident memory, an hour, where growth is certain."""
MOST_SLOWER = 1.1
COLORS = (SERVER, TIMER)


@dataclass(frozen=True)
class Soak:
    """A whole soak."""

    share: float
    capacity: dict[str, float]
    """Observations a second of each model alone."""
    seen: dict[str, list[Interval]]
    store_growth: int
    """Bytes on disk."""

    @property
    def whole(self) -> list[Interval]:
        """Intervals of the first model, whose figures of the server are those of all."""
        return next(iter(self.seen.values()))

    @property
    def answered(self) -> list[int]:
        """Observations of all models, by interval."""
        return [sum(one.answered for one in together) for together in zip(*self.seen.values(), strict=True)]

    @property
    def memory(self) -> Trend:
        """Bytes a second."""
        return trend([one.at for one in self.whole], [one.resident for one in self.whole])

    @property
    def faults(self) -> int:
        """What went wrong in all."""
        return sum(one.faults for its in self.seen.values() for one in its)

    @property
    def unanswered(self) -> int:
        """Observations that never got an answer."""
        return sum(its[-1].waiting for its in self.seen.values())

    @property
    def cpu_us(self) -> list[float]:
        """Of the server, an observation, by interval; NaN where none was answered."""
        pairs = zip(self.whole, self.answered, strict=True)
        return [one.server_cpu / answered * 1e6 if answered else math.nan for one, answered in pairs]


def soaked(minutes: float, share: float, ended: int, advance: Callable[[str], None], folder: Path) -> Soak:
    """Does it."""
    known = [model.info for model in load_models(load(["--max-batch", "1"]))]
    seconds = 60 * minutes
    with served(folder) as server:
        advance(f"open and close {ended:,} sessions")
        uvloop.run(fill_ended(server.port, ended))
        capacity = {}
        for info in known:
            advance(f"capacity of {info.name}")
            closed = measured(
                Load(server.port, server.pid, info.name, words(info), 2 * STREAMS, 1, min(SECONDS_OF_CAPACITY, seconds))
            )
            capacity[info.name] = closed.observations / closed.seconds
        before = on_disk(folder)
        first, second = (
            Traffic(
                server.port,
                server.pid,
                info.name,
                words(info),
                rate=share * capacity[info.name] / len(known),
                seconds=seconds,
                streams=STREAMS,
                sessions=SESSIONS,
                churn=CHURN,
                warm_up=WARM_UP * seconds,
                every=seconds / intervals_of(minutes),
                seed=number,
            )
            for number, info in enumerate(known)
        )
        seen: dict[str, list[Interval]] = {first.model: [], second.model: []}
        advance(f"{share:.0%} load, {minutes:g} min")
        with intervals(first) as of_first, intervals(second) as of_second:
            for one, other in zip(of_first, of_second, strict=True):
                seen[first.model].append(one)
                seen[second.model].append(other)
                faults = sum(interval.faults for its in seen.values() for interval in its)
                left = max(0.0, seconds - one.at) / 60
                advance(f"{left:.1f} min left, {one.resident / 2**20:,.0f} MiB, {faults} errors")
        return Soak(share, capacity, seen, on_disk(folder) - before)


def intervals_of(minutes: float) -> int:
    """How many the whole is cut into."""
    return max(1, min(INTERVALS, int(60 * minutes / SHORTEST_INTERVAL)))


async def fill_ended(port: int, count: int) -> None:
    """Opens and closes so many sessions."""
    holder = Holder()
    await holder.connect(port)
    for first in range(0, count, FRAME):
        part = min(FRAME, count - first)
        begin = len(holder.ids)
        await holder.open(part)
        await holder.close(np.arange(begin, begin + part))
        if begin + part + FRAME > 4 * FRAME:
            holder.leave()
            holder = Holder()
            await holder.connect(port)
    holder.leave()


def words(info: ModelInfo) -> int:
    """Size of the vocabulary; 0 for values."""
    return len(info.text.vocabulary) if info.text else 0


def on_disk(folder: Path) -> int:
    """Bytes of the store."""
    return sum(file.stat().st_size for file in (folder / "state").glob("sessions.db*"))


def per_hour(trend: Trend, unit: float, digits: str) -> str:
    """A slope by second as one by hour, in this unit, with its interval."""
    slope, low, high, _ = trend.scaled(3600 / unit)
    return f"{slope:{digits}} ({low:{digits}} to {high:{digits}})"


def page(soak: Soak, minutes: float) -> str:
    """The whole page."""
    resident = float(np.mean([one.resident for one in soak.whole]))
    memory = soak.memory
    flat = memory.low <= 0 or memory.slope * 3600 <= MOST_GROWTH * resident
    judged = [
        ["errors", f"{soak.faults}", "0", verdict(not soak.faults)],
        ["observations without an answer", f"{soak.unanswered}", "0", verdict(not soak.unanswered)],
        [
            "memory, MB an hour (95 %)",
            per_hour(memory, 1e6, "+.2f"),
            f"not above 0, or <= {MOST_GROWTH * resident / 1e6:.2f}",
            verdict(flat),
        ],
    ]
    rows = []
    for model, its in soak.seen.items():
        slower = growth([one.p99_ms for one in its])
        judged.append(
            [
                f"{model}, p99 of the last third / the first",
                f"{slower:.2f}",
                f"<= {MOST_SLOWER}",
                verdict(slower <= MOST_SLOWER),
            ]
        )
        at = [one.at for one in its]
        rows.append(
            [
                model,
                f"{soak.capacity[model]:,.0f}",
                f"{sum(one.answered for one in its) / its[-1].at:,.0f}",
                f"{sum(one.answered for one in its):,}",
                f"{sum(one.changes for one in its):,}",
                f"{np.median([one.p50_ms for one in its]):.2f}",
                f"{np.median([one.p99_ms for one in its]):.2f}",
                f"{max(one.worst_ms for one in its):.0f}",
                per_hour(trend(at, [one.p99_ms for one in its]), 1.0, "+.1f"),
                f"{np.median([one.late_ms for one in its]):.2f}",
            ]
        )
    header = [
        "model",
        "capacity/s",
        "observations/s",
        "observations",
        "sessions changed",
        "p50 ms",
        "p99 ms",
        "worst ms",
    ]
    header += ["p99, ms an hour (95 %)", "generator late, p99 ms"]
    rate = sum(soak.answered) / soak.whole[-1].at
    slope, low, high, _ = memory.scaled(1 / rate)
    busy = sum(one.server_cpu for one in soak.whole) / soak.whole[-1].at
    messages = [message for its in soak.seen.values() for one in its for message in one.messages]
    each = soak.share / len(soak.seen)
    return f"""# {minutes:g} minutes at {soak.share:.0%} load

Both models at once, each with {each:.0%} of what it reaches alone in a closed loop, in {STREAMS} streams of {SESSIONS}
sessions. {CHURN:g} sessions of each a second are closed and replaced by new ones or by copies, or rewound. Latency
counts from when an observation was due; p50 and p99 are medians over {len(soak.whole)} intervals. Of the time before
that, {WARM_UP:.0%} as long, nothing is counted.

{table(["what", "measured", "target", "met"], judged)}

{table(header, rows)}

Resident memory was {resident / 2**20:,.0f} MiB; it grew by {slope:+.4f} bytes an observation ({low:+.4f} to
{high:+.4f}). An observation took {np.nanmedian(soak.cpu_us):.0f} us of the server's CPU, in the last third
{growth(soak.cpu_us):.2f} times as much as in the first; the server was {busy:.0%} busy. The store grew by
{soak.store_growth / 2**20:,.1f} MiB.
{"".join(f"{chr(10)}- {message}" for message in dict.fromkeys(messages))}
![Memory, latency and CPU over time](soak.png)
"""


def plot(soak: Soak, path: Path) -> None:
    """Memory, latency and CPU, over time."""
    figure, (memory, latency, cpu) = plt.subplots(3, 1, figsize=(12, 8.4), sharex=True, layout="constrained")
    minutes = [one.at / 60 for one in soak.whole]
    memory.plot(minutes, [one.resident / 2**20 for one in soak.whole], color=SERVER)
    line = soak.memory
    ends = [soak.whole[0].at, soak.whole[-1].at]
    memory.plot(
        [at / 60 for at in ends],
        [(line.intercept + line.slope * at) / 2**20 for at in ends],
        color="#888888",
        ls="--",
        label=f"{per_hour(line, 1e6, '+.2f')} MB an hour",
    )
    memory.set_ylim(0, 1.3 * max(one.resident for one in soak.whole) / 2**20)
    ends_with(memory.yaxis, " MiB")
    memory.set_title("Resident memory")
    for color, (model, its) in zip(COLORS, soak.seen.items(), strict=True):
        latency.plot(minutes, [one.p50_ms for one in its], color=color, label=f"{model}, median")
        latency.plot(minutes, [one.p99_ms for one in its], color=color, ls="--", label=f"{model}, 99 %")
    latency.set_yscale("log")
    latency.set_ylim(top=latency.get_ylim()[1] * 3)  # room for the legend
    ends_with(latency.yaxis, " ms")
    latency.set_title(f"Latency, from when it was due; {soak.faults} errors in {sum(soak.answered):,} observations")
    cpu.plot(minutes, soak.cpu_us, color=SERVER)
    cpu.set_ylim(bottom=0)
    ends_with(cpu.yaxis, " us")
    cpu.set_title("The server's CPU an observation")
    cpu.set_xlabel("minutes")
    for axes in (memory, latency, cpu):
        tidy(axes)
        axes.margins(x=0.01)
    memory.legend(frameon=False, loc="upper right")
    latency.legend(frameon=False, loc="upper right", ncols=4)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(
    minutes: Annotated[float, typer.Option(help="How long it is watched.", min=0.1)] = 30.0,
    share: Annotated[float, typer.Option(help="Of capacity.", min=0.01, max=1)] = 0.7,
    ended: Annotated[int, typer.Option(help="Sessions that are opened and closed first.", min=1)] = ENDED,
    out: Annotated[Path, typer.Option(help="Folder for soak.md and soak.png.")] = Path("bench/results"),
) -> None:
    """Puts a steady load on a server of both shipped models and looks whether anything grows or fails."""
    with tempfile.TemporaryDirectory() as scratch, progress(4 + intervals_of(minutes)) as advance:
        soak = soaked(minutes, share, ended, advance, Path(scratch))
    publish("soak", page(soak, minutes), out)
    plot(soak, out / "soak.png")
    if soak.faults or soak.unanswered:
        raise BenchError(f"{soak.faults} errors and {soak.unanswered} observations without an answer; see the page")


if __name__ == "__main__":
    run(main)
