"""Several processes under torchrun: they learn what one does, and go on by themselves when one of them dies."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from typer.testing import CliRunner

from hiddenstate_models.cli import app
from hiddenstate_models.training.checkpoint import load_checkpoint
from hiddenstate_models.training.run import load_weights

COMMON = ["--epochs", "2", "--lanes", "4", "--k1", "3", "--k2", "3", "--hidden", "6", "--optimizer", "sgd"]
COMMON += ["--accelerator", "cpu", "--warmup", "0"]
WORDS = ["next-word", "--embedding", "6", "--vocabulary", "20", "--dropout", "0", "--learning-rate", "0.3"]
SAMPLED = [*WORDS, "--output", "sampled", "--samples", "8", "--full-epochs", "0"]
VALUES = ["next-value", "--learning-rate", "0.05", "--session", "40"]
FORECASTS = ["forecasting", "--learning-rate", "0.05", "--session", "40", "--horizon", "4", "--origins", "2"]
FORECASTS += ["--k2", "6"]
TASKS = {
    "next-word": WORDS,
    "sampled": SAMPLED,
    "next-value": VALUES,
    "forecasting": FORECASTS,
    "regularised": [*WORDS, "--gradient-regulariser", "0.5"],
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LIMIT = 240


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Text in which either of two words may follow each word, and a noisy wave, by task."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    dialogues = []
    for _ in range(20):
        words = [int(generator.integers(15))]
        while len(words) < 20:
            words.append((3 * words[-1] + int(generator.integers(2))) % 15)
        dialogues.append("U\t" + " ".join(f"w{word}" for word in words))
    (folder / "corpus.txt").write_text("\n\n".join(dialogues))
    wave = np.sin(np.arange(200) / 5) + generator.normal(0, 0.1, 200)
    (folder / "wave.csv").write_text("value\n" + "\n".join(map(str, wave)))
    values = folder / "wave.csv"
    return {"next-word": folder / "corpus.txt", "next-value": values, "forecasting": values}


def command(task: list[str], data: dict[str, Path], out: Path) -> list[str]:
    return ["train", task[0], "--data", str(data[task[0]]), "--out", str(out), *COMMON, *task[1:]]


def in_one_process(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output


@contextmanager
def in_two_processes(arguments: list[str], *flags: str) -> Iterator[subprocess.Popen[str]]:
    """torchrun with two workers; it and they are gone afterwards, whatever happens."""
    line = [*TORCHRUN, *flags, "-m", "hiddenstate_models", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        family = psutil.Process(process.pid)
        try:
            yield process
        finally:
            if process.poll() is None:
                for member in [*family.children(recursive=True), family]:
                    member.kill()


def assert_same_weights(one: Path, two: Path) -> None:
    expected, got = load_weights(one), load_weights(two)
    assert expected.keys() == got.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_two_processes_learn_what_one_does(task: list[str], data: dict[str, Path], tmp_path: Path) -> None:
    in_one_process(command(task, data, tmp_path / "one"))
    with in_two_processes(command(task, data, tmp_path / "two")) as process:
        output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    assert output.count("epoch 2: ") == output.count("Done. ") == 1, "only one process tells how far it is"
    assert "Warning" not in output
    assert "deprecated" not in output
    assert_same_weights(tmp_path / "one", tmp_path / "two")


def test_a_killed_worker_starts_again_from_the_last_checkpoint(data: dict[str, Path], tmp_path: Path) -> None:
    """torchrun starts both workers again, and the run ends as one that nobody disturbed."""
    longer = [*SAMPLED, "--patience", "8"]
    arguments = [*command(longer, data, tmp_path / "killed"), "--epochs", "8"]
    with in_two_processes(arguments, "--max-restarts", "1") as process:
        checkpoint = tmp_path / "killed" / "checkpoint"
        deadline = time.monotonic() + LIMIT
        while not checkpoint.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        workers = [
            child
            for child in psutil.Process(process.pid).children()
            if child.environ().get("RANK") is not None and "TORCHELASTIC_RUN_ID" in child.environ()
        ]
        assert len(workers) == 2
        next(worker for worker in workers if worker.environ()["RANK"] == "1").kill()
        output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    assert "goes on from update" in " ".join(output.split())
    in_one_process([*command(longer, data, tmp_path / "one"), "--epochs", "8"])
    ends = [load_checkpoint(tmp_path / name / "checkpoint").progress for name in ("one", "killed")]
    assert ends[0]["update"] == ends[1]["update"]
    assert len(ends[1]["history"]) == 8
    assert_same_weights(tmp_path / "one", tmp_path / "killed")
