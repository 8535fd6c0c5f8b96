"""The recurrent Jacobian d h_t / d h_(t-1) of each layer: what one step does to a gradient."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hiddenstate_models.gradients.unrolling import Unrolled

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class Spectra:
    """Of one layer's Jacobian, at some steps of a sequence."""

    size: int
    """The Jacobian has size x size entries: the layer's whole state row, of an LSTM h and c."""
    steps: list[int]
    singular_values: list[list[float]]
    """At each step, at the quantiles `QUANTILES`: the smallest, ..., the median, ..., the largest."""
    radii: list[float]
    """At each step, the largest absolute eigenvalue."""

    @property
    def radius(self) -> float:
        """The median spectral radius."""
        return float(np.median(self.radii))

    @property
    def largest(self) -> float:
        """The median of the largest singular value, which no gradient can outgrow in a step."""
        return float(np.median([values[-1] for values in self.singular_values]))


def spectra(stretch: Unrolled, count: int) -> list[Spectra]:
    """Of each layer, at `count` steps spread evenly along the lane that goes back the farthest."""
    lane = int(stretch.ages.amax(0).argmax())
    last = int(stretch.ages[:, lane].argmax())
    first = last - int(stretch.ages[last, lane])
    steps: list[int] = sorted(set(np.linspace(min(first + 1, last), last, count).round().astype(int).tolist()))
    found = []
    for layer in range(len(stretch.layers)):
        matrices = [jacobian(stretch, layer, step, lane) for step in steps]
        values = [np.quantile(torch.linalg.svdvals(matrix).numpy(), QUANTILES).tolist() for matrix in matrices]
        radii = [float(torch.linalg.eigvals(matrix).abs().max()) for matrix in matrices]
        found.append(Spectra(len(matrices[0]), [step - first for step in steps], values, radii))
    return found


def jacobian(stretch: Unrolled, layer: int, step: int, lane: int) -> Tensor:
    """d row / d previous row [n, n] of one layer at one step of one lane, its input from below held.

    Rows of a batch do not see each other, so one backward pass through n copies of the step gives all of it.
    """
    steps = stretch.layers[layer]
    row = steps.before[step][lane].detach()
    rows = row.repeat(len(row), 1).requires_grad_()
    x = steps.inputs[step][lane].detach().expand(len(row), -1)
    _, after = steps.layer.step(x, rows)
    (matrix,) = torch.autograd.grad(after, rows, torch.eye(len(row), dtype=row.dtype), materialize_grads=True)
    return matrix
