"""The benchmark of starting runs."""

import pytest
from bench import start


def test_both_are_started(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(start, "TIMES", 1)
    start.main()
    printed = capsys.readouterr().out
    assert "import hiddenstate" in printed
    assert "until it is ready" in printed
