import math
from typing import Literal

import pytest
import torch

from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.networks.distributions import negative_log_likelihood
from hiddenstate_models.networks.values import NextValueConfig, NextValueNetwork

CONFIGS = [
    NextValueConfig(hidden_sizes=(6,)),
    NextValueConfig(hidden_sizes=(5, 4), columns=3, targets=(2, 0), distribution="gaussian"),
    NextValueConfig(cell="lstm", hidden_sizes=(6, 6), projection=3, columns=2, targets=(1,)),
    NextValueConfig(hidden_sizes=(6,), columns=2, targets=(1,), scaling="fixed"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_sequence_and_steps_agree(config: NextValueConfig) -> None:
    torch.manual_seed(0)
    network = NextValueNetwork(config).eval()
    values = 1e4 + torch.randn(20, 4, config.columns, dtype=torch.float64).cumsum(0)
    values[torch.rand(values.shape) < 0.1] = math.nan
    state = network.initial_state(4)
    with torch.no_grad():
        together, last = network(values, state)
        for t, row in enumerate(values):
            alone, state = network.step(row, state)
            for field, expected in zip(alone.prediction, together.prediction, strict=True):
                torch.testing.assert_close(field, expected[t], rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_predicts_in_the_clients_units() -> None:
    torch.manual_seed(0)
    network = NextValueNetwork(CONFIGS[0])
    values = torch.randn(50, 1, 1, dtype=torch.float64).cumsum(0)
    plain, _ = network(values, network.initial_state(1))
    moved, _ = network(1e6 + 1e3 * values, network.initial_state(1))
    locations, scales, freedom = (field[5:] for field in plain.prediction)
    torch.testing.assert_close(moved.prediction.locations[5:], 1e6 + 1e3 * locations, rtol=0, atol=5.0)
    torch.testing.assert_close(moved.prediction.scales[5:], 1e3 * scales, rtol=1e-2, atol=0)
    torch.testing.assert_close(moved.prediction.degrees_of_freedom[5:], freedom, rtol=1e-2, atol=0)


def test_learns_through_the_distribution() -> None:
    torch.manual_seed(0)
    network = NextValueNetwork(CONFIGS[0])
    values = torch.sin(torch.arange(60, dtype=torch.float64)).view(-1, 1, 1)
    forecast, _ = network(values[:-1], network.initial_state(1))
    negative_log_likelihood(forecast.prediction, values[1:]).mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("config", CONFIGS)
def test_configuration_survives_json_types(config: NextValueConfig) -> None:
    assert NextValueConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(("columns", "targets"), [(1, ()), (1, (1,)), (2, (0, -1))])
def test_targets_are_columns(columns: int, targets: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="targets must be indices"):
        NextValueConfig(columns=columns, targets=targets)


@pytest.mark.parametrize(("distribution", "outputs"), [("student-t", 6), ("gaussian", 4)])
def test_head_size(distribution: Literal["student-t", "gaussian"], outputs: int) -> None:
    config = NextValueConfig(hidden_sizes=(5,), columns=2, targets=(0, 1), distribution=distribution)
    assert NextValueNetwork(config).head.weight.shape == (outputs, 5)
