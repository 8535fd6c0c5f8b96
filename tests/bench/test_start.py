"""The benchmark of starting runs."""

from pathlib import Path

from bench import start
from tests.bench.test_bench import number
from tests.bench.test_scale import rows_of


def test_both_are_started(tmp_path: Path) -> None:
    start.main(times=1, out=tmp_path)
    found = {row[0]: row[1:] for row in rows_of(tmp_path / "start.md") if len(row) == 7}
    for what in start.WAYS:
        assert all(number(cell) > 0 for cell in found[what])
