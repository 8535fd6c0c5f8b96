"""Averages of weights: what they are averages of, and that they are what is validated and kept."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.test_training import OPTIONS, documents, network_of, trainer
from torch import Tensor, nn

from hiddenstate_models.training.averaging import WeightAverage, stopped_improving
from hiddenstate_models.training.checkpoint import Checkpoint
from hiddenstate_models.training.loop import Progress, Update

__all__ = ["documents"]


class Weights:
    """Keeps the embedding after every update, and counts epochs."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.seen: list[Tensor] = []
        self.averaged: list[int] = []

    def updated(self, _update: Update, _progress: Progress, /) -> None:
        self.seen.append(self._network.get_parameter("encoder.weight").detach().clone())

    def validated(self, progress: Progress) -> None:
        self.averaged.append(progress.averaged)


def test_the_mean_of_all_updates_is_validated_kept_and_checkpointed(documents: list[list[str]]) -> None:
    run = trainer(documents, replace(OPTIONS, epochs=2, average="asgd"))
    weights = Weights(network_of(run))
    run._watchers = (weights,)
    best: list[nn.Module] = []
    checkpoints: list[Checkpoint] = []
    validated: list[nn.Module] = []
    validate = run._task.validate
    run._task.validate = lambda network: (validated.append(network), validate(network))[1]  # type: ignore[func-returns-value, method-assign]
    run.fit(on_checkpoint=checkpoints.append, on_best=best.append)
    mean = torch.stack(weights.seen).mean(0)
    assert validated == [run.best_guess, run.best_guess]
    assert best[-1] is run.best_guess
    torch.testing.assert_close(run.best_guess.get_parameter("encoder.weight"), mean)
    torch.testing.assert_close(checkpoints[-1].average["encoder.weight"], mean)
    assert torch.equal(checkpoints[-1].weights["encoder.weight"], weights.seen[-1])
    assert not torch.allclose(mean, weights.seen[-1])


def test_a_moving_average_begins_as_a_mean_and_forgets() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, replace(OPTIONS, average="ema", average_decay=0.75))
    values = np.random.default_rng(0).normal(size=12).astype(np.float32)
    for i, value in enumerate(values):
        nn.init.constant_(network.weight, float(value))
        average.add(network, i)
        if i == 3:
            assert average.network.get_parameter("weight").item() == pytest.approx(values[:4].mean(), rel=1e-5)
    expected = values[:4].mean()
    for value in values[4:]:
        expected = 0.75 * expected + 0.25 * value
    assert average.network.get_parameter("weight").item() == pytest.approx(expected, rel=1e-5)


def test_nt_asgd_averages_from_where_validation_stopped_improving(documents: list[list[str]]) -> None:
    """Patience does not end the run before there is an average, and counts from its beginning."""
    options = replace(OPTIONS, epochs=20, average="nt-asgd", non_monotone=3, patience=2)
    run = trainer(documents, options)
    weights = Weights(network_of(run))
    run._watchers = (weights,)
    losses = iter([3.0, 2.0, 2.5, 2.4, 2.2, 2.3, 2.6, 2.7, 2.8, 2.9])
    run._task.validate = lambda _network: {"loss": next(losses)}  # type: ignore[method-assign, assignment]
    run.fit(on_checkpoint=lambda _: None, on_best=lambda _: None)
    # 2.3 in the sixth epoch is the first above the best (2.0) of all but the three before it.
    assert run.progress.averaging_since == 6
    assert [count > 0 for count in weights.averaged] == [False] * 6 + [True] * 2
    torch.testing.assert_close(
        run.best_guess.get_parameter("encoder.weight"), torch.stack(weights.seen[-run.progress.averaged :]).mean(0)
    )


@pytest.mark.parametrize(
    ("losses", "stopped"),
    [([], False), ([5.0, 6, 7, 8], False), ([5.0, 4, 4, 4, 6], True), ([5.0, 4, 4, 4, 4.5], False), ([5.0] * 9, False)],
)
def test_the_sign_to_begin_averaging(losses: list[Any], stopped: bool) -> None:
    assert stopped_improving(losses, 3) == stopped
