"""Learning rates over time."""

from typing import Any

import pytest

from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.schedules import learning_rate


def rate(update: int, *, epoch: int = 0, plateaus: int = 0, steps: int = 35, **options: Any) -> float:
    told = TrainingOptions(learning_rate=2.0, **{"warmup": 0, **options})
    return learning_rate(told, update=update, total_updates=100, epoch=epoch, plateaus=plateaus, steps=steps)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "step", "plateau"])
def test_every_schedule_warms_up_to_the_peak(schedule: str) -> None:
    assert rate(0, schedule=schedule, warmup=10) == pytest.approx(0.2)
    assert rate(0, schedule=schedule) == pytest.approx(2.0)


def test_schedules_fall_as_they_say() -> None:
    assert [rate(update, schedule="constant", epoch=9, plateaus=9) for update in (0, 50, 100)] == [2.0] * 3
    assert [rate(update, schedule="linear") for update in (25, 50, 100, 120)] == [1.5, 1.0, 0.0, 0.0]
    assert rate(50, schedule="cosine") == pytest.approx(2 * (0.01 + 0.99 / 2))
    assert rate(120, schedule="cosine") == pytest.approx(0.02)
    step = [rate(0, schedule="step", decay=0.5, decay_after=2, epoch=epoch) for epoch in range(5)]
    assert step == [2.0, 2.0, 1.0, 0.5, 0.25]
    assert rate(0, schedule="plateau", plateaus=2) == 2 / 16


def test_a_shorter_window_has_a_lower_rate_where_lengths_are_sampled() -> None:
    assert rate(0, schedule="constant", sample_k1=True, steps=14) == pytest.approx(0.8)
    assert rate(0, schedule="constant", steps=14) == 2.0
