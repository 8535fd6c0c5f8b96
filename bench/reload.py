"""What others notice of a version that is loaded: `python -m bench.reload` times sessions while versions come and go.

Sessions of the shipped next-value model observe at a steady pace; meanwhile versions of the shipped next-word model are
added to the model folder, loaded by call, and taken away again.
"""

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import uvloop

from bench.pace import INTERVAL_SECONDS, Answer, Span, comparison, observe
from bench.page import progress, publish, run
from bench.processes import served
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


async def measured(port: int, models: Path, advance: Callable[[str], None]) -> tuple[list[Answer], list[Span]]:
    """All answers, and when versions were being loaded."""
    answers: list[Answer] = []
    loads = []
    async with AsyncClient(f"localhost:{port}") as client, asyncio.TaskGroup() as group:
        observers = [group.create_task(observe(client, "next-value", 20.0, answers)) for _ in range(SESSIONS)]
        await asyncio.sleep(QUIET_SECONDS)
        answers.clear()
        for number in range(2, 2 + VERSIONS):
            advance(f"version {number - 1} of {VERSIONS}")
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


def page(answers: list[Answer], loads: list[Span]) -> str:
    """The whole page."""
    took = np.median([load.seconds for load in loads])
    return f"""# Loading versions under load

{SESSIONS} sessions of next-value observe up to {1 / INTERVAL_SECONDS:g} times a second each, while {len(loads)}
versions of {NEW} are loaded and taken away again, {took:.2f} s each (median).

{comparison(answers, loads, "nothing is loaded", "a version is loaded")}
"""


def main(
    out: Annotated[Path, typer.Option(help="Folder for reload.md.")] = Path("bench/results"),
) -> None:
    """Measures what steady sessions notice of versions that are loaded."""
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch) / "models"
        shutil.copytree(shipped_bundles(), models)
        with (
            served(Path(scratch), "--models", models, "--reload-interval", "0s") as server,
            progress(VERSIONS) as advance,
        ):
            answers, loads = uvloop.run(measured(server.port, models, advance))
    publish("reload", page(answers, loads), out)


if __name__ == "__main__":
    run(main)
