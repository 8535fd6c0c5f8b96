"""Small runs of the benchmarks of how many sessions and streams there can be."""

import resource
from pathlib import Path

import pytest
from bench import idle, sizes
from bench.processes import BenchError
from tests.bench.test_bench import PNG, number
from tests.bench.test_scale import rows_of


def test_more_sessions_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SETTLING_SECONDS": 0.0, "ROUNDS": 1, "ACTIVE": 40, "WAYS": [sizes.IN_ARENA]}.items():
        monkeypatch.setattr(sizes, name, value)
    sizes.main(size=[30, 200], seconds=0.1, folder=tmp_path, out=tmp_path)
    found = [row for row in rows_of(tmp_path / "sizes.md") if row[0] == "all in the arena"]
    assert [row[1] for row in found] == ["30", "200"]
    for row in found:
        # Not the bytes and the CPU of opening so few: they may be less than a page and a tick.
        assert all(number(cell) > 0 for cell in row[2:4] + row[5:6] + row[7:11])
    assert (tmp_path / "sizes.png").read_bytes().startswith(PNG)


def test_streams_at_rest_are_counted_and_answer(tmp_path: Path) -> None:
    idle.main(streams=[10, 30], seconds=0.1, out=tmp_path)
    found = [row for row in rows_of(tmp_path / "idle.md") if row[0] in ("10", "30")]
    assert len(found) == 2
    for row in found:
        assert all(number(cell) > 0 for cell in row[5:])
    assert (tmp_path / "idle.png").read_bytes().startswith(PNG)


def test_too_few_open_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    with pytest.raises(BenchError, match="ulimit"):
        idle.allow_files(5000)
