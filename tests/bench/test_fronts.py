"""The echo servers of our own answer the load."""

import pytest
from bench.fronts import __main__ as fronts


def test_echo_servers_take_the_load(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts, "FRONTS", [front for front in fronts.FRONTS if not front.environment])
    fronts.main(streams=[3], seconds=1.0, rounds=1)
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.strip().splitlines()[2:]]
    assert [row[1].strip() for row in rows] == [front.title for front in fronts.FRONTS]
    assert all(float(row[3].replace(",", "")) > 0 for row in rows)
