"""The benchmark of loading versions runs."""

from pathlib import Path

import pytest
from bench import reload
from tests.bench.test_bench import number
from tests.bench.test_scale import rows_of


def test_a_version_is_loaded_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "VERSIONS", 1)
    monkeypatch.setattr(reload, "SESSIONS", 2)
    monkeypatch.setattr(reload, "QUIET_SECONDS", 1.0)
    reload.main(out=tmp_path)
    page = (tmp_path / "reload.md").read_text()
    assert "while 1\nversions" in page
    found = {row[0]: row[1:] for row in rows_of(tmp_path / "reload.md")}
    for what in ("nothing is loaded", "a version is loaded"):
        assert all(number(cell) > 0 for cell in found[what])
