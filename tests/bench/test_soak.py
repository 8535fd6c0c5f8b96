"""Trends, and a short soak."""

import math
from pathlib import Path

import numpy as np
import pytest
from bench import soak
from bench.trend import growth, trend
from tests.bench.test_bench import PNG
from tests.bench.test_scale import rows_of


def test_a_slope_is_found_within_its_interval() -> None:
    random = np.random.default_rng(3)
    at = np.arange(0.0, 1800.0, 10.0)
    found = trend(at.tolist(), (400.0 + 0.5 * at + random.normal(0.0, 20.0, len(at))).tolist())
    assert found.low < 0.5 < found.high
    assert found.slope == pytest.approx(0.5, rel=0.1)
    assert found.intercept == pytest.approx(400.0, rel=0.05)
    assert found.scaled(3600).slope == pytest.approx(3600 * found.slope)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(4)
    at = list(range(180))
    held = [trend(at, random.normal(0.0, 1.0, 180).tolist()) for _ in range(400)]
    assert np.mean([one.low <= 0 <= one.high for one in held]) == pytest.approx(0.95, abs=0.04)


def test_too_few_values_have_no_trend() -> None:
    with pytest.raises(ValueError, match="three"):
        trend([0.0, 1.0], [1.0, 2.0])


def test_growth_compares_thirds() -> None:
    assert growth([1.0, 1.0, 9.0, 5.0, 2.0, 2.0, math.nan]) == pytest.approx(2.0)


def test_a_soak_comes_through(tmp_path: Path) -> None:
    soak.main(minutes=0.1, share=0.05, ended=100, out=tmp_path)
    judged = {row[0]: row for row in rows_of(tmp_path / "soak.md") if len(row) == 4}
    assert judged["errors"][1] == "0"
    assert judged["observations without an answer"][1] == "0"
    assert (tmp_path / "soak.png").read_bytes().startswith(PNG)
