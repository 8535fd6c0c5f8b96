"""A short run of the real benchmark. Nothing here depends on how fast anything is."""

import subprocess
import sys
from pathlib import Path

import pytest
from bench.engine import cost
from bench.points import SHAPES

from hiddenstate_models.export import random_bundle
from hiddenstate_server.settings import load
from hiddenstate_server.versions.repository import load_models

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


def tables(page: str) -> dict[str, list[dict[str, str]]]:
    """Rows of each section's table, by column."""
    found = {}
    for section in page.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        found[title] = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    return found


def number(cell: str) -> float:
    """A cell's number, without separators and units."""
    return float(cell.replace(",", "").rstrip("%"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of a moment on a tiny model leaves."""
    folder = tmp_path_factory.mktemp("bench")
    random_bundle(folder / "models", "next-word")
    command = [sys.executable, "-m", "bench", "--seconds", "0.1"]
    command += ["--models", str(folder / "models"), "--out", str(folder / "results")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder / "results"


def test_every_load_is_in_every_table(results: Path) -> None:
    found = tables((results / "results.md").read_text())
    loads = {f"next-word, {shape.name}" for shape in SHAPES}
    for title in ("Against the targets", "Throughput and latency", "CPU an observation"):
        assert {row["load"] for row in found[title]} == loads
    assert [row["model"] for row in found["Memory and the engine"]] == ["next-word"]


def test_numbers_are_sane(results: Path) -> None:
    found = tables((results / "results.md").read_text())
    for row in found["Throughput and latency"]:
        for whose in ("", "echo "):
            p50, p99, p999 = (number(row[f"{whose}{name} ms"]) for name in ("p50", "p99", "p99.9"))
            assert 0 < p50 <= p99 <= p999
        assert number(row["observations/s"]) > 0
        assert number(row["echo/s"]) > 0
    for row in found["CPU an observation"]:
        assert number(row["engine us"]) > 0
        assert 1 <= number(row["mean batch"]) <= 4 * 1024
    assert number(found["Memory and the engine"][0]["bytes a session"]) > 0


def test_the_plot_is_a_picture(results: Path) -> None:
    assert (results / "bench.png").read_bytes().startswith(PNG)


def test_the_engine_alone_steps_models_of_values(tmp_path: Path) -> None:
    random_bundle(tmp_path, "next-value")
    (model,) = load_models(load(["--models", str(tmp_path), "--max-batch", "1"]))
    cpu, clock = cost(model, 8, 0.02)
    assert 0 < cpu < 1e6
    assert 0 < clock < 1e6
