"""The benchmark of shared clients runs."""

import pytest
from bench import sdk


def test_sessions_of_a_client_stand_beside_streams(capsys: pytest.CaptureFixture[str]) -> None:
    sdk.main(sessions=6, seconds=1.0, rounds=1, model=["next-value"])
    *_, streams, shared = capsys.readouterr().out.strip().splitlines()
    assert "6 streams" in streams
    assert "6 sessions of an AsyncClient" in shared
    for line in (streams, shared):
        assert all(float(cell.replace(",", "")) > 0 for cell in line.strip("|").split("|")[1:5])
