"""What others notice of a version that is loaded: `python -m bench.reload` times sessions while versions come and go.

Sessions of the shipped next-value model observe at a steady pace; meanwhile versions of the shipped next-word model are
added to the model folder, loaded by call, and taken away again.
"""

import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import uvloop
from rich.console import Console
from rich.markdown import Markdown

from bench.pace import Answer, Span, comparison, observe
from bench.processes import free_port, started
from hiddenstate import AsyncClient
from hiddenstate_models.bundle import CONFIG_FILE, shipped_bundles

SESSIONS = 16
VERSIONS, QUIET_SECONDS = 10, 2.0
NEW = "next-word"


def add_version(models: Path, number: int) -> None:
    """A copy of the first version under another number."""
    folder = models / NEW / str(number)
    shutil.copytree(models / NEW / "1", folder)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"version": number}))


async def measured(port: int, models: Path) -> tuple[list[Answer], list[Span]]:
    """All answers, and when versions were being loaded."""
    answers: list[Answer] = []
    loads = []
    async with AsyncClient(f"localhost:{port}") as client, asyncio.TaskGroup() as group:
        observers = [group.create_task(observe(client, "next-value", 20.0, answers)) for _ in range(SESSIONS)]
        await asyncio.sleep(QUIET_SECONDS)
        answers.clear()
        for number in range(2, 2 + VERSIONS):
            await asyncio.sleep(QUIET_SECONDS)
            await asyncio.to_thread(add_version, models, number)
            began = time.monotonic()
            reloaded = await client.reload_models(timeout=60)
            loads.append(Span(began, time.monotonic()))
            assert reloaded.loaded == (f"{NEW}/{number}",), reloaded
            await asyncio.to_thread(shutil.rmtree, models / NEW / str(number))
            await client.reload_models(timeout=60)
        for observer in observers:
            observer.cancel()
    return answers, loads


def main() -> None:
    """Measures and prints a table."""
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch) / "models"
        shutil.copytree(shipped_bundles(), models)
        port = free_port()
        program = Path(sys.executable).with_name("hiddenstate-server")
        flags = ["--port", str(port), "--metrics-port", "0", "--models", str(models), "--reload-interval", "0s"]
        flags += ["--store", f"sqlite:///{scratch}/sessions.db"]
        with started([program, *flags], [port], Path(scratch) / "server.log"):
            answers, loads = uvloop.run(measured(port, models))
    Console().print(Markdown(comparison(answers, loads, "nothing is loaded", "a version is loaded")))
    took = np.array([load.seconds for load in loads])
    Console().print(f"{len(loads)} loaded, {np.median(took):.2f} s each (median)")


if __name__ == "__main__":
    main()
