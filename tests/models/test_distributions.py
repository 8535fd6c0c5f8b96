import math

import numpy as np
import pytest
import torch
from scipy import stats

from hiddenstate_models.networks.distributions import (
    SMALLEST_DEGREES_OF_FREEDOM,
    SMALLEST_SCALE,
    Prediction,
    central_probability,
    in_units,
    negative_log_likelihood,
    read_head,
)

DEGREES = [2.1, 3.0, 5.5, 30.0, 300.0, math.inf]
DISTANCES = torch.tensor([0.0, 0.1, -1.0, 2.0, -5.0, 30.0, 1e4], dtype=torch.float64)


def prediction(freedom: float, location: float = 0.0, scale: float = 1.0) -> Prediction:
    return Prediction(*(torch.full((7,), x, dtype=torch.float64) for x in (location, scale, freedom)))


@pytest.mark.parametrize("freedom", DEGREES)
def test_against_scipy(freedom: float) -> None:
    reference = stats.norm() if math.isinf(freedom) else stats.t(freedom)
    surprises = negative_log_likelihood(prediction(freedom), DISTANCES)
    np.testing.assert_allclose(surprises, -reference.logpdf(DISTANCES.numpy()), rtol=1e-9)
    held = central_probability(prediction(freedom), DISTANCES)
    np.testing.assert_allclose(held, 2 * reference.cdf(DISTANCES.abs().numpy()) - 1, atol=1e-7)


@pytest.mark.parametrize("freedom", [3.0, math.inf])
def test_units_shift_and_stretch(freedom: float) -> None:
    plain, factor, offset = prediction(freedom, 0.5, 2.0), torch.tensor(1e3).double(), torch.tensor(-7.0).double()
    moved = in_units(plain, offset, factor)
    surprises = negative_log_likelihood(moved, offset + factor * DISTANCES)
    torch.testing.assert_close(surprises, negative_log_likelihood(plain, DISTANCES) + factor.log())


def test_head_layout() -> None:
    outputs = torch.tensor([[1.0, 2.0, -50.0, 0.0, -50.0, 3.0]])
    location, scale, freedom = read_head(outputs, "student-t")
    np.testing.assert_array_equal(location, [[1, 2]])
    np.testing.assert_allclose(scale, [[SMALLEST_SCALE, math.log(2) + SMALLEST_SCALE]], rtol=1e-6)
    np.testing.assert_allclose(freedom, [[SMALLEST_DEGREES_OF_FREEDOM, 5.148587]], rtol=1e-6)
    location, scale, freedom = read_head(outputs[:, :4], "gaussian")
    assert location.shape == scale.shape == freedom.shape == (1, 2)
    assert freedom.isinf().all()


@pytest.mark.parametrize("distribution", ["student-t", "gaussian"])
def test_gradients_are_finite_far_out(distribution: str) -> None:
    outputs = torch.zeros(1, 3 if distribution == "student-t" else 2, requires_grad=True)
    negative_log_likelihood(read_head(outputs, distribution), torch.tensor([[1e6]])).sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


def test_a_missing_value_has_no_surprise() -> None:
    assert negative_log_likelihood(prediction(3.0), torch.full((7,), math.nan)).isnan().all()
