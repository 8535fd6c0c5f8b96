"""The cells as their papers write them down, one unit of a sequence after the other in float64 NumPy.

Weights are those of one layer by their names in torch, gates below each other; which of them there are says which
options the layer has.
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


def normalised(a: Floats, gain: Floats) -> Floats:
    """Ba et al. (2016), equation 4, without the bias."""
    deviation = np.sqrt(a.var(axis=-1, keepdims=True) + 1e-5)
    return np.asarray(gain * (a - a.mean(axis=-1, keepdims=True)) / deviation)


def none(weights: Weights, x: Floats, row: Floats) -> tuple[Floats, Floats]:
    return np.tanh(x @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]), row


def elman(function: Callable[[Floats], Floats]) -> Callable[[Weights, Floats, Floats], tuple[Floats, Floats]]:
    def step(weights: Weights, x: Floats, row: Floats) -> tuple[Floats, Floats]:
        a = x @ weights["weight_ih_l0"].T + row @ weights["weight_hh_l0"].T
        if "norm_hh_l0" in weights:
            a = normalised(a, weights["norm_hh_l0"])
        h = function(a + weights["bias_ih_l0"] + weights["bias_hh_l0"])
        return h, h

    return step


def jordan(weights: Weights, x: Floats, row: Floats) -> tuple[Floats, Floats]:
    h = np.tanh(gates(weights, "ih", x, 1)[0] + gates(weights, "hh", row, 1)[0])
    y = h @ weights["weight_hr_l0"].T + weights["bias_hr_l0"]
    return y, y


def lstm(weights: Weights, x: Floats, row: Floats) -> tuple[Floats, Floats]:
    outputs, units = weights["weight_hh_l0"].shape[1], row.shape[1] - weights["weight_hh_l0"].shape[1]
    h, c = row[:, :outputs], row[:, outputs:]
    of_x, of_h = x @ weights["weight_ih_l0"].T, h @ weights["weight_hh_l0"].T
    if "norm_ih_l0" in weights:
        of_x, of_h = normalised(of_x, weights["norm_ih_l0"]), normalised(of_h, weights["norm_hh_l0"])
    a = of_x + weights["bias_ih_l0"] + of_h + weights["bias_hh_l0"]
    *inner, g, o = np.split(a, a.shape[1] // units, axis=1)
    peepholes = weights.get("peephole_l0", np.zeros((len(inner) + 1, units)))
    opened = [sigmoid(gate + peephole * c) for gate, peephole in zip(inner, peepholes, strict=False)]
    i, f = opened if len(opened) == 2 else (1 - opened[0], opened[0])
    c = f * c + i * np.tanh(g)
    shown = c
    if "norm_ch_l0" in weights:
        shown = normalised(c, weights["norm_ch_l0"]) + weights["bias_ch_l0"]
    h = sigmoid(o + peepholes[-1] * c) * np.tanh(shown)
    if "weight_hr_l0" in weights:
        h = h @ weights["weight_hr_l0"].T
    return h, np.hstack([h, c])


def gru(weights: Weights, x: Floats, row: Floats) -> tuple[Floats, Floats]:
    if "norm_ih_l0" in weights:
        return normalised_gru(weights, x, row)
    (r_x, z_x, n_x), (r_h, z_h, n_h) = gates(weights, "ih", x, 3), gates(weights, "hh", row, 3)
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    h = (1 - z) * np.tanh(n_x + r * n_h) + z * row
    return h, h


def normalised_gru(weights: Weights, x: Floats, row: Floats) -> tuple[Floats, Floats]:
    units = row.shape[1]
    parts = {}
    for kind, of in (("ih", x), ("hh", row)):
        a, gain = of @ weights[f"weight_{kind}_l0"].T, weights[f"norm_{kind}_l0"]
        both = normalised(a[:, : 2 * units], gain[: 2 * units]), normalised(a[:, 2 * units :], gain[2 * units :])
        parts[kind] = np.split(np.hstack(both) + weights[f"bias_{kind}_l0"], 3, axis=1)
    (r_x, z_x, n_x), (r_h, z_h, n_h) = parts["ih"], parts["hh"]
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    h = (1 - z) * np.tanh(n_x + r * n_h) + z * row
    return h, h


STEPS = {
    "none": none,
    "rnn-tanh": elman(np.tanh),
    "rnn-relu": elman(lambda x: np.maximum(x, 0)),
    "jordan": jordan,
    "lstm": lstm,
    "gru": gru,
}
