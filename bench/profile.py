"""Where the server's time goes: `python -m bench.profile` samples it under single observations and under frames.

perf tells which library or the kernel each moment of CPU is spent in, all threads together; from the CPU of the same
stretch follow the microseconds an observation. py-spy, in a stretch of its own since it halts the server for each
sample, tells which module of the server had called whatever was running. perf comes with the system (Debian:
linux-perf) and needs root or kernel.perf_event_paranoid <= 1; py-spy comes by pip.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib import pyplot as plt

from bench.load import Load, Measured
from bench.page import progress, publish, run
from bench.points import Shape
from bench.processes import BenchError, Started, measured, served
from bench.report import table
from hiddenstate_server.settings import load
from hiddenstate_server.versions.repository import load_models

SHAPES = (Shape("64 streams, singles", 64, 1), Shape("4 streams, frames of 1,024", 4, 1024))
SAMPLES_A_SECOND, STACKS_A_SECOND = 997, 97
SECONDS_TO_BEGIN = 2.0
"""Until the load's process has connected."""
MODULES_SHOWN = 16

PARTS = {
    "kernel": ("[kernel", "[vdso]"),
    "gRPC core": ("cygrpc",),
    "interpreter": ("libpython", "python3", "_asyncio", "_struct", "_socket", "_queue"),
    "uvloop": ("loop.cpython",),
    "protobuf": ("_message",),
    "numpy": ("_multiarray_umath", "openblas"),
    "engine (ONNX Runtime)": ("onnxruntime",),
    "store (SQLite)": ("sqlite3",),
    "libc, allocator": ("libc.so", "libstdc++", "ld-linux", "libpthread", "jemalloc", "libm.so"),
}
OTHER = "other"
COLORS = ("#7a7a7a", "#3b6ea5", "#8fb4d9", "#5a9e6f", "#b8d8a8", "#c9b458", "#e0913a", "#a5543b", "#c8c8c8", "#e6e6e6")
WAITING = ("pthread_cond_", "PyThread_acquire_lock", "epoll_", "poll (", "sem_")
"""What a thread that does nothing stands in, within its last frames."""
LAST_FRAMES = 3
PACKAGE = "hiddenstate_server/"
ELSEWHERE = "gRPC, asyncio and threads outside of it"


@dataclass(frozen=True)
class Profile:
    """One load."""

    name: str
    cpu_us: float
    """Of the server, an observation."""
    parts: dict[str, float]
    """Share of each part."""
    modules: dict[str, float]
    """Share of each module of the server, what it calls included."""


def part_of(library: str) -> str:
    """Which part a shared object belongs to."""
    return next((part for part, names in PARTS.items() if any(name in library for name in names)), OTHER)


def shares_of_parts(report: str) -> dict[str, float]:
    """From the lines of `perf report -q --no-children --sort dso --field-separator ,`."""
    found = dict.fromkeys((*PARTS, OTHER), 0.0)
    for line in report.splitlines():
        share, separator, library = line.partition(",")
        if separator:
            found[part_of(library)] += float(share.strip().rstrip("%"))
    total = sum(found.values())
    if not total:
        raise BenchError("perf saw nothing of the server: is it allowed to (kernel.perf_event_paranoid)?")
    return {part: share / total for part, share in found.items()}


def module_of(stack: str) -> str | None:
    """The module of the server that had called what was running; None where the thread was waiting."""
    frames = stack.split(";")
    if any(name in frame for frame in frames[-LAST_FRAMES:] for name in WAITING):
        return None
    ours = (frame for frame in reversed(frames) if f"({PACKAGE}" in frame)
    frame = next(ours, None)
    return ELSEWHERE if frame is None else frame.partition(f"({PACKAGE}")[2].partition(":")[0]


def shares_of_modules(stacks: Iterable[str]) -> dict[str, float]:
    """From lines of a stack and how often it was seen, as py-spy writes them."""
    found: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        module = module_of(stack)
        if module is not None:
            found[module] += int(count)
    total = found.total()
    return {module: count / total for module, count in found.most_common()}


def sampled(command: list[str], to_put_on: Load) -> Measured:
    """Runs a command while a load is on; what came of the load."""
    with ThreadPoolExecutor(1) as pool:
        putting = pool.submit(measured, to_put_on)
        time.sleep(SECONDS_TO_BEGIN)
        done = subprocess.run(command, capture_output=True, text=True)
        result = putting.result()
    if done.returncode:
        raise BenchError(f"{command[0]} failed:\n{done.stderr}")
    return result


def profiled(server: Started, model: str, vocabulary: int, shape: Shape, seconds: float, scratch: Path) -> Profile:
    """Samples one load twice."""
    put_on = Load(
        server.port,
        server.pid,
        model,
        vocabulary,
        shape.streams,
        shape.rows,
        seconds + 2 * SECONDS_TO_BEGIN,
    )
    samples, stacks = scratch / "perf.data", scratch / "stacks.txt"
    watch = ["perf", "record", "-q", "-F", str(SAMPLES_A_SECOND), "-p", str(server.pid), "-o", str(samples)]
    seen = sampled([*watch, "--", "sleep", str(seconds)], put_on)
    report = ["perf", "report", "-i", str(samples), "--stdio", "-q", "--no-children", "--sort", "dso"]
    report += ["--field-separator", ","]
    parts = shares_of_parts(subprocess.run(report, capture_output=True, text=True, check=True).stdout)
    spy = [py_spy(), "record", "--native", "--pid", str(server.pid), "--rate", str(STACKS_A_SECOND)]
    sampled([*spy, "--duration", str(round(seconds)), "--format", "raw", "--output", str(stacks)], put_on)
    return Profile(
        name=f"{model}, {shape.name}",
        cpu_us=seen.server_cpu / seen.observations * 1e6,
        parts=parts,
        modules=shares_of_modules(stacks.read_text().splitlines()),
    )


def py_spy() -> str:
    """The program; BenchError where it is not installed."""
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise BenchError("py-spy is not installed: pip install py-spy")
    return found


def page(profiles: list[Profile], seconds: float) -> str:
    """The whole page."""
    header = [f"{profile.name}" for profile in profiles]
    parts = [
        [part, *(f"{profile.parts[part] * profile.cpu_us:.2f} ({profile.parts[part]:.0%})" for profile in profiles)]
        for part in (*PARTS, OTHER)
    ]
    parts.append(["in all", *(f"{profile.cpu_us:.2f}" for profile in profiles)])
    most: Counter[str] = Counter()
    for profile in profiles:
        for module, share in profile.modules.items():
            most[module] = max(most[module], round(1e6 * share))
    modules = [
        [
            name if name == ELSEWHERE else f"`{name}`",
            *(
                f"{profile.modules.get(name, 0) * profile.cpu_us:.2f} ({profile.modules.get(name, 0):.0%})"
                for profile in profiles
            ),
        ]
        for name, _ in most.most_common(MODULES_SHOWN)
    ]
    return f"""# Where the time goes

Microseconds of the server's CPU an observation, and their share. First by the library that runs, from perf over
{seconds:g} s, all threads.

{table(["part", *header], parts)}

The same by the module of hiddenstate_server that had called what runs, from py-spy over as long; the {len(modules)}
largest. What it calls is counted with it: the engine with `runtimes/onnx.py`, SQLite with `store/sql.py`.

{table(["module", *header], modules)}

![Shares of the server's time](profile.png)
"""


def plot(profiles: list[Profile], path: Path) -> None:
    """A bar a load, of its parts."""
    figure, axes = plt.subplots(figsize=(12, 1.2 + 0.8 * len(profiles)), layout="constrained")
    names = [f"{profile.name}\n{profile.cpu_us:,.1f} us an observation" for profile in profiles]
    left = np.zeros(len(profiles))
    for color, part in zip(COLORS, (*PARTS, OTHER), strict=True):
        shares = np.array([100 * profile.parts[part] for profile in profiles])
        bars = axes.barh(names, shares, left=left, color=color, label=part, height=0.62)
        axes.bar_label(
            bars, [f"{share:.0f}" if share >= 3 else "" for share in shares], label_type="center", fontsize=8
        )
        left += shares
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter("{x:.0f} %")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=5, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def all_profiled(seconds: float, advance: Callable[[str], None]) -> list[Profile]:
    """Every shape of every shipped model."""
    found = []
    known = [model.info for model in load_models(load(["--max-batch", "1"]))]
    with tempfile.TemporaryDirectory() as scratch, served(Path(scratch)) as server:
        for info in known:
            vocabulary = len(info.text.vocabulary) if info.text else 0
            for shape in SHAPES:
                advance(f"{info.name}: {shape.name}")
                found.append(profiled(server, info.name, vocabulary, shape, seconds, Path(scratch)))
    return found


def main(
    seconds: Annotated[float, typer.Option(help="How long each of both looks at each load.", min=1)] = 10.0,
    out: Annotated[Path, typer.Option(help="Folder for profile.md and profile.png.")] = Path("bench/results"),
) -> None:
    """Samples a server under load and tells which parts of it take how many microseconds."""
    if shutil.which("perf") is None:
        raise BenchError("perf is not installed (Debian: apt-get install linux-perf)")
    py_spy()
    with progress(2 * len(SHAPES)) as advance:
        profiles = all_profiled(seconds, advance)
    publish("profile", page(profiles, seconds), out)
    plot(profiles, out / "profile.png")


if __name__ == "__main__":
    run(main)
