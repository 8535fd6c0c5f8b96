"""A small run of `bench.scale`: it compares every prediction by itself, so it has only to come through."""

import subprocess
import sys
from pathlib import Path

from tests.bench.test_bench import ROOT, number


def rows_of(page: Path) -> list[list[str]]:
    """Cells of all tables."""
    return [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]


def test_sessions_beyond_the_arena_come_back_right(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.scale", "--sessions", "3000", "--arena", "400", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "scale.md").read_text()
    assert page.startswith("# 3,000 sessions, 400 places in the arena")
    figures = {row[0]: row[1] for row in rows_of(tmp_path / "scale.md") if len(row) == 2}
    assert number(figures["disk a session, bytes"]) > number(figures["bytes of state"])
    for what in ("start on this store, after SIGKILL, s", "1,024 of them resumed, ms"):
        assert number(figures[what]) > 0
