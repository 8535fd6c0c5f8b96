"""The benchmark of loading versions runs."""

import pytest
from bench import reload


def test_a_version_is_loaded_under_load(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(reload, "VERSIONS", 1)
    monkeypatch.setattr(reload, "SESSIONS", 2)
    monkeypatch.setattr(reload, "QUIET_SECONDS", 0.3)
    reload.main()
    printed = capsys.readouterr().out
    assert "nothing is loaded" in printed
    assert "1 loaded," in printed
