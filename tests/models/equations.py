"""The cells as their papers write them down, one unit of a sequence after the other in float64 NumPy.

Weights are those of one layer by their names in torch, gates below each other.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Weights = Mapping[str, Floats]


def sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def gates(weights: Weights, kind: str, x: Floats, number: int) -> list[Floats]:
    matrices = np.split(weights[f"weight_{kind}_l0"], number)
    biases = np.split(weights[f"bias_{kind}_l0"], number)
    return [x @ matrix.T + bias for matrix, bias in zip(matrices, biases, strict=True)]


def elman(function: Callable[[Floats], Floats]) -> Callable[[Weights, Floats, Floats], tuple[Floats, Floats]]:
    def step(weights: Weights, x: Floats, row: Floats) -> tuple[Floats, Floats]:
        h = function(gates(weights, "ih", x, 1)[0] + gates(weights, "hh", row, 1)[0])
        return h, h

    return step


def lstm(weights: Weights, x: Floats, row: Floats) -> tuple[Floats, Floats]:
    outputs = weights["weight_hh_l0"].shape[1]
    h, c = row[:, :outputs], row[:, outputs:]
    pairs = zip(gates(weights, "ih", x, 4), gates(weights, "hh", h, 4), strict=True)
    i, f, g, o = (of_x + of_h for of_x, of_h in pairs)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    if "weight_hr_l0" in weights:
        h = h @ weights["weight_hr_l0"].T
    return h, np.hstack([h, c])


def gru(weights: Weights, x: Floats, row: Floats) -> tuple[Floats, Floats]:
    (r_x, z_x, n_x), (r_h, z_h, n_h) = gates(weights, "ih", x, 3), gates(weights, "hh", row, 3)
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    h = (1 - z) * np.tanh(n_x + r * n_h) + z * row
    return h, h


STEPS = {"rnn-tanh": elman(np.tanh), "rnn-relu": elman(lambda x: np.maximum(x, 0)), "lstm": lstm, "gru": gru}
