"""A run's outcomes as a markdown page."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime

from bench.peers.catalog import BATCHED, SDK, STREAMS, Contestant
from bench.peers.comparison import SESSIONS, TOLERANCE, Outcome
from bench.peers.load import Measured
from bench.report import table, verdict

JUDGED_SESSIONS = 64


def rate(measured: Measured) -> float:
    """Observations a second."""
    return measured.observations / measured.seconds


def cpu(measured: Measured) -> float:
    """Microseconds of the server an observation."""
    return measured.server_cpu / measured.observations * 1e6


def loads(outcomes: Sequence[Outcome]) -> str:
    """Throughput, latency and CPU of everybody under every load, and how ours compare."""
    rows = []
    for sessions in SESSIONS:
        at = {one.contestant.name: one.loads[sessions] for one in outcomes if sessions in one.loads}
        for outcome in outcomes:
            measured = at.get(outcome.contestant.name)
            if measured is None:
                rows.append([outcome.contestant.title, str(sessions), *["-"] * 8])
                continue
            ours = [at[name] for name in (STREAMS.name, SDK.name)]
            rows.append(
                [
                    outcome.contestant.title,
                    str(sessions),
                    f"{rate(measured):,.0f}",
                    *(f"{value:.1f}" for value in measured.latency_ms.values()),
                    f"{cpu(measured):,.0f}",
                    *(f"{rate(mine) / rate(measured):.1f}" for mine in ours),
                    f"{cpu(measured) / cpu(ours[0]):.1f}",
                    f"{measured.generator_cpu / measured.seconds:.0%}",
                ]
            )
    header = ["server", "sessions", "observations/s", "p50 ms", "p99 ms", "CPU us an observation"]
    header += ["streams / it", "SDK / it", "its CPU / streams'", "generator busy"]
    return table(header, rows)


def memory(outcomes: Sequence[Outcome]) -> str:
    """What a session takes."""
    rows = [
        [one.contestant.title, f"{one.session_bytes / 1e3:,.1f}", f"{one.resident / 2**20:,.0f}"]
        for one in outcomes
        if one.session_bytes is not None and one.resident is not None
    ]
    return table(["server", "KB a session", "resident MiB"], rows)


def targets(outcomes: Sequence[Outcome]) -> str:
    """The ratios of throughput that are aimed at."""
    rates = {one.contestant.name: rate(one.loads[JUDGED_SESSIONS]) for one in outcomes if JUDGED_SESSIONS in one.loads}
    general = {
        one.contestant: rates[one.contestant.name]
        for one in outcomes
        if one.contestant.general and one.contestant.name in rates
    }
    rows = []
    if general:
        best = max(general, key=lambda one: general[one])
        for ours, least in ((SDK, 10), (STREAMS, 4)):
            rows.append(
                _judged(ours, f"the best general server, {best.title}", rates[ours.name] / general[best], least)
            )
    if BATCHED.name in rates:
        what = "the afternoon server with batching"
        rows += [_judged(ours, what, rates[ours.name] / rates[BATCHED.name], 3) for ours in (SDK, STREAMS)]
    return table(["at 64 sessions", "measured", "target", "met"], rows)


def _judged(ours: Contestant, beside: str, ratio: float, least: float) -> list[str]:
    return [f"{ours.title} / {beside}", f"{ratio:.1f}", f">= {least:g}", verdict(ratio >= least)]


def failures(outcomes: Sequence[Outcome], missing: Sequence[Contestant]) -> str:
    """Who could not be measured, and why."""
    lines = [
        f"- {one.contestant.title}: {failure.strip()}".replace("\n", "\n      ")
        for one in outcomes
        for failure in one.failures
    ]
    lines += [f"- {one.title} is not installed. Install it: `{one.installer}`" for one in missing]
    return "\n".join(["## Not measured", *lines, ""]) if lines else ""


def page(outcomes: Sequence[Outcome], missing: Sequence[Contestant], seconds: float) -> str:
    """The whole page."""
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"""# Beside other servers

{when}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {seconds:g} s a load.
Everybody serves the shipped next-word model and was checked first to answer as hiddenstate does, to {TOLERANCE:g}.
Loops are closed: each session has one observation on its way, by a connection of its own unless all share one
AsyncClient. CPU is user and system time of all the server's processes.

## Against the targets
{targets(outcomes)}

## Throughput, latency and CPU
{loads(outcomes)}

## Memory
{memory(outcomes)}

{failures(outcomes, missing)}"""
