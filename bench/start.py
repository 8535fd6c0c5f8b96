"""How long things take to start: `python -m bench.start` imports the SDK and starts a server, again and again.

Both as on a machine that has run them before: bytecode is there, in a folder made for it, and files are cached. Where
other work takes the processors, CPU tells more than the clock.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from bench.page import progress, publish, run
from bench.processes import BenchError
from bench.report import table, verdict
from bench.usage import Usage

IMPORT, SERVE = "`import hiddenstate`", "a server of both shipped models, until it is ready"
MOST_SECONDS = {IMPORT: 0.15, SERVE: 2.0}


class Took(NamedTuple):
    """One start."""

    seconds: float
    cpu: float
    """Seconds, of all threads."""


def importing(environment: dict[str, str]) -> Took:
    """`import hiddenstate` in a new process; the interpreter's own start is not counted."""
    now = "time.perf_counter(), time.process_time()"
    code = f"import time; begun = {now}; import hiddenstate; print(*(b - a for a, b in zip(begun, ({now}))))"
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    return Took(*map(float, printed.split()))


def serving(environment: dict[str, str]) -> Took:
    """From the command to the line that says that both shipped models are served."""
    program = Path(sys.executable).with_name("hiddenstate-server")
    begun = time.perf_counter()
    with subprocess.Popen(
        [program, "--port", "0", "--metrics-port", "0"], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - begun
        if b"ready on" not in line:
            raise BenchError(f"the server did not start: {line.decode()}")
        cpu = Usage(process.pid).cpu()
        process.terminate()
    return Took(seconds, cpu)


WAYS: dict[str, Callable[[dict[str, str]], Took]] = {IMPORT: importing, SERVE: serving}


def page(took: dict[str, list[Took]]) -> str:
    """The whole page."""
    judged, rows = [], []
    for what, times in took.items():
        seconds, cpu = np.array(times).T
        most = MOST_SECONDS[what]
        for name, figure in (("s", np.median(seconds)), ("CPU s", np.median(cpu))):
            judged.append([f"{what}, {name}", f"{figure:.3f}", f"<= {most}", verdict(bool(figure <= most))])
        rows.append(
            [what, *(f"{figure:.3f}" for one in (seconds, cpu) for figure in (min(one), np.median(one), max(one)))]
        )
    header = ["what", "shortest, s", "median, s", "longest, s", "least CPU, s", "median CPU, s", "most CPU, s"]
    return f"""# Start

{len(took[IMPORT])} times each, in new processes, with bytecode; files are cached.

{table(["what", "measured", "target", "met"], judged)}

{table(header, rows)}
"""


def main(
    times: Annotated[int, typer.Option(help="How often each is started.", min=1)] = 10,
    out: Annotated[Path, typer.Option(help="Folder for start.md.")] = Path("bench/results"),
) -> None:
    """Measures how long the SDK takes to be imported, and a server to be ready."""
    with tempfile.TemporaryDirectory() as scratch, progress(len(WAYS)) as advance:
        own = {"PYTHONPYCACHEPREFIX": f"{scratch}/bytecode", "HIDDENSTATE_STATE_FOLDER": f"{scratch}/state"}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | own
        took = {}
        for name, way in WAYS.items():
            advance(name)
            way(environment)
            took[name] = [way(environment) for _ in range(times)]
    publish("start", page(took), out)


if __name__ == "__main__":
    run(main)
