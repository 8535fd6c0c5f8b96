"""How long things take to start: `python -m bench.start` imports the SDK and starts a server, again and again.

Both as on a machine that has run them before: bytecode is there, files are cached.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from bench.report import table

TIMES = 10


def importing(environment: dict[str, str]) -> float:
    """Seconds that `import hiddenstate` takes in a new process."""
    code = "import time; begun = time.perf_counter(); import hiddenstate; print(time.perf_counter() - begun)"
    return float(subprocess.check_output([sys.executable, "-c", code], env=environment))


def serving(environment: dict[str, str]) -> float:
    """Seconds from the command to the line that says that both shipped models are served."""
    program = Path(sys.executable).with_name("hiddenstate-server")
    begun = time.perf_counter()
    with subprocess.Popen(
        [program, "--port", "0", "--metrics-port", "0"], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - begun
        process.terminate()
        if b"ready on" not in line:
            raise SystemExit(f"bench.start: the server did not start: {line.decode()}")
    return seconds


def main() -> None:
    """Measures both and prints a table."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        own = {"PYTHONPYCACHEPREFIX": f"{scratch}/bytecode", "HIDDENSTATE_STATE_FOLDER": f"{scratch}/state"}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | own
        ways: dict[str, Callable[[dict[str, str]], float]] = {
            "`import hiddenstate`": importing,
            "a server, until it is ready": serving,
        }
        for name, way in ways.items():
            way(environment)
            seconds = [way(environment) for _ in range(TIMES)]
            rows.append([name, *(f"{figure:.3f}" for figure in (min(seconds), np.median(seconds), max(seconds)))])
    Console().print(Markdown(table(["what", "shortest, s", "median, s", "longest, s"], rows)))


if __name__ == "__main__":
    main()
