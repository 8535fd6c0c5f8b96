"""Distributions of a next value: what a head's outputs mean, how likely a value was, how much an interval holds.

A prediction is a location-scale family, so the same degrees of freedom hold in scaled and in the client's units.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_SCALE = 0.01
"""In units of a typical step, so that a series standing still does not make every move an impossibility."""
SMALLEST_DEGREES_OF_FREEDOM = 2.1
"""Above 2, so that there is a variance."""
PARAMETERS = {"student-t": 3, "gaussian": 2}
"""Outputs of the head per target, by distribution: location, scale and, for Student's t, degrees of freedom."""

_NODES, _WEIGHTS = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(48))


class Prediction(NamedTuple):
    """A distribution for every target, all [..., targets]."""

    locations: Tensor
    scales: Tensor
    degrees_of_freedom: Tensor
    """Infinite for a Gaussian."""


def read_head(outputs: Tensor, distribution: str) -> Prediction:
    """A head's outputs [..., parameters * targets], parameter by parameter, as distributions in scaled units."""
    location, scale, *tail = outputs.float().chunk(PARAMETERS[distribution], dim=-1)
    scale = F.softplus(scale) + SMALLEST_SCALE
    if tail:
        return Prediction(location, scale, F.softplus(tail[0]) + SMALLEST_DEGREES_OF_FREEDOM)
    return Prediction(location, scale, torch.full_like(location, math.inf))


def in_units(prediction: Prediction, anchors: Tensor, units: Tensor) -> Prediction:
    """A scaled prediction in the client's units: float64 anchor and unit of each target, [..., targets]."""
    locations = anchors + units * prediction.locations
    return Prediction(locations, units * prediction.scales, prediction.degrees_of_freedom)


def negative_log_likelihood(prediction: Prediction, values: Tensor) -> Tensor:
    """Surprise in nats of values [..., targets], in the prediction's units; NaN where value or location is."""
    locations, scales, freedom = prediction
    squares = ((values - locations) / scales).square()
    gaussian = freedom.isinf()
    finite = freedom.masked_fill(gaussian, 1.0)  # both branches stay finite, or their gradients would not
    normalizer = torch.lgamma((finite + 1) / 2) - torch.lgamma(finite / 2) - (finite * math.pi).log() / 2
    student = (finite + 1) / 2 * torch.log1p(squares / finite) - normalizer
    return torch.where(gaussian, (squares + math.log(2 * math.pi)) / 2, student) + scales.log()


def central_probability(prediction: Prediction, values: Tensor) -> Tensor:
    """Probability [..., targets] of the central interval that ends at each value; a 90 % interval holds those below .9.

    Student's t is integrated by Gauss-Legendre quadrature over the angle atan(z / sqrt(df)), where it is smooth.
    """
    locations, scales, freedom = (parameter.double() for parameter in prediction)
    distances = ((values - locations) / scales).abs()
    gaussian = freedom.isinf()
    finite = freedom.masked_fill(gaussian, 1.0)
    angles = torch.atan(distances / finite.sqrt())
    nodes, weights = _NODES.to(angles.device), _WEIGHTS.to(angles.device)
    cosines = torch.cos(angles.unsqueeze(-1) * (nodes + 1) / 2)
    integral = angles / 2 * (weights * cosines ** (finite - 1).unsqueeze(-1)).sum(-1)
    constant = torch.exp(torch.lgamma((finite + 1) / 2) - torch.lgamma(finite / 2)) / math.sqrt(math.pi)
    return torch.where(gaussian, torch.erf(distances / math.sqrt(2)), 2 * constant * integral)
