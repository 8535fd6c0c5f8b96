"""The benchmark of several workers runs."""

import pytest
from bench import workers


def test_a_load_is_put_on_one_worker_and_on_two(capsys: pytest.CaptureFixture[str]) -> None:
    workers.main(workers=[1, 2], seconds=1.0, rounds=1, model=["next-value"])
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.strip().splitlines()[2:]]
    assert [row[1].strip() for row in rows] == ["1", "2", "1", "2"]
    assert all(float(row[2].replace(",", "")) > 0 for row in rows)
