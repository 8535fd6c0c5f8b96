"""What a warm-up costs, and what others notice of it: `python -m bench.warming [FLAGS OF hiddenstate-server]`.

First the arithmetic without transport: one session's observations step by step beside runs of the whole sequence. Then
a server of the shipped models: sessions of next-word observe at a steady pace while another one is fed 10,000 words.
"""

import asyncio
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import uvloop

from bench.engine import random_inputs
from bench.pace import Answer, Span, comparison, observe
from bench.page import show
from bench.processes import free_port, started
from bench.report import table
from hiddenstate import AsyncClient, Client
from hiddenstate_server import logs
from hiddenstate_server.settings import load
from hiddenstate_server.stepping.arena import Arena
from hiddenstate_server.stepping.engine import Engine
from hiddenstate_server.versions.repository import LoadedModel, load_models

LENGTHS = (8, 16, 32, 64)
TURNS = 20
SESSIONS, WARM_UPS, WARM_UP_WORDS, QUIET_SECONDS = 16, 10, 10_000, 2.0


def costs(model: LoadedModel, length: int) -> tuple[float, float]:
    """Microseconds of CPU an observation takes step by step, and in runs of `length`: medians of turns."""
    engine = Engine(model.runtime, Arena(16, *model.runtime.initial()), 1, length)
    rows = engine.arena.allocate(1)
    inputs = random_inputs(model, length)
    stepped, run = [], []
    for _ in range(TURNS):
        begun = time.thread_time()
        for at in range(length):
            engine.step(rows, inputs[at : at + 1])
        half = time.thread_time()
        engine.run(int(rows[0]), inputs)
        stepped.append(half - begun)
        run.append(time.thread_time() - half)
    return float(np.median(stepped)) / length * 1e6, float(np.median(run)) / length * 1e6


def warm_up(port: int) -> Span:
    """Feeds a new session thousands of words, from a process of its own, as another user would."""
    with Client(f"localhost:{port}") as client, client.session("next-word") as session:
        assert session.model.vocabulary
        words = np.random.default_rng(0).choice(session.model.vocabulary.words, WARM_UP_WORDS).tolist()
        began = time.monotonic()
        session.observe_many(words, timeout=60)
        return Span(began, time.monotonic())


async def measured(port: int) -> tuple[list[Answer], list[Span]]:
    """Everybody's answers, and when warm-ups went on."""
    answers: list[Answer] = []
    warm_ups = []
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as another:
        async with AsyncClient(f"localhost:{port}") as client, asyncio.TaskGroup() as group:
            observers = [group.create_task(observe(client, "next-word", "the", answers)) for _ in range(SESSIONS)]
            await loop.run_in_executor(another, warm_up, port)
            answers.clear()
            for _ in range(WARM_UPS):
                await asyncio.sleep(QUIET_SECONDS)
                warm_ups.append(await loop.run_in_executor(another, warm_up, port))
            for observer in observers:
                observer.cancel()
    return answers, warm_ups


def main(flags: list[str]) -> None:
    """Measures both with these flags of the server and prints tables."""
    logs.configure("console", "warning")
    rows = []
    for model in load_models(load(["--max-batch", "16", *flags])):
        for length in LENGTHS if model.max_run else ():
            step, run = costs(model, length)
            rows.append([model.info.name, str(length), f"{step:.0f}", f"{run:.1f}", f"{step / run:.1f}"])
    header = ["model", "observations", "CPU us each, step by step", "in a run", "times as fast"]
    show(table(header, rows) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        port = free_port()
        program = Path(sys.executable).with_name("hiddenstate-server")
        places = ["--port", str(port), "--metrics-port", "0", "--store", f"sqlite:///{scratch}/sessions.db"]
        with started([program, *places, *flags], [port], Path(scratch) / "server.log"):
            answers, warm_ups = uvloop.run(measured(port))
    words = f"{WARM_UP_WORDS:,} words"
    show(comparison(answers, warm_ups, "nobody else is there", f"another session is fed {words}"))
    rate = WARM_UP_WORDS / np.median([span.seconds for span in warm_ups])
    show(f"\n{len(warm_ups)} times {words}, {rate:,.0f} words a second (median).")


if __name__ == "__main__":
    main(sys.argv[1:])
