"""The benchmark of warm-ups runs, and runs of a sequence are there to be measured."""

import pytest
from bench import warming


def test_others_are_timed_beside_a_warm_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(warming, "TURNS", 2)
    monkeypatch.setattr(warming, "SESSIONS", 2)
    monkeypatch.setattr(warming, "WARM_UPS", 1)
    monkeypatch.setattr(warming, "WARM_UP_WORDS", 500)
    monkeypatch.setattr(warming, "QUIET_SECONDS", 0.3)
    warming.main([])
    printed = capsys.readouterr().out
    for what in ("next-word", "next-value", "another session is fed 500 words", "1 times 500 words"):
        assert what in printed
