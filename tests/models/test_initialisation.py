"""How weights start, by name."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hiddenstate_models.cells import CellOptions, RecurrentStack


def parameters(size: int = 6, layers: int = 1, **options: Any) -> list[dict[str, Tensor]]:
    """The weights of each layer."""
    torch.manual_seed(0)
    stack = RecurrentStack(4, CellOptions(hidden_sizes=(size,) * layers, **options))
    return [{name: p.detach() for name, p in layer.named_parameters()} for layer in stack.layers]


@pytest.mark.parametrize(("cell", "gates"), [("rnn-tanh", 1), ("lstm", 4), ("gru", 3)])
@pytest.mark.parametrize("initialisation", ["default", "orthogonal"])
def test_recurrent_weights_start_orthogonal_gate_by_gate(cell: Any, gates: int, initialisation: Any) -> None:
    for layer in parameters(layers=2, cell=cell, initialisation=initialisation):
        for gate in layer["weight_hh_l0"].chunk(gates):
            torch.testing.assert_close(gate @ gate.T, torch.eye(6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"cell": "rnn-relu"}, {"cell": "rnn-tanh", "initialisation": "identity"}])
def test_identity_copies_the_state(options: Any) -> None:
    for layer in parameters(200, 2, **options):
        assert torch.equal(layer["weight_hh_l0"], torch.eye(200))
        assert layer["bias_ih_l0"].abs().max() == layer["bias_hh_l0"].abs().max() == 0
        assert layer["weight_ih_l0"].std().item() == pytest.approx(0.001, rel=0.1)


@pytest.mark.parametrize("cell", ["rnn-relu", "lstm", "gru"])
def test_uniform_is_torchs_own(cell: Any) -> None:
    (layer,) = parameters(100, cell=cell, initialisation="uniform")
    weight = layer["weight_hh_l0"]
    assert weight.abs().max() <= 0.1
    assert weight.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("initialisation", ["default", "uniform"])
def test_lstm_forget_gates_start_where_told(initialisation: Any) -> None:
    for value in (1.0, 2.5):
        (layer,) = parameters(cell="lstm", forget_bias=value, initialisation=initialisation)
        assert (layer["bias_ih_l0"] + layer["bias_hh_l0"])[6:12].tolist() == [value] * 6


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_chrono_gates_keep_what_they_hold_for_up_to_t_max_steps(cell: Any) -> None:
    (layer,) = parameters(2000, cell=cell, initialisation="chrono", t_max=300)
    bias = layer["bias_ih_l0"] + layer["bias_hh_l0"]
    keeps = bias[2000:4000]
    # A gate of sigmoid(log(T - 1)) = 1 - 1 / T forgets in T steps.
    steps = 1 / (1 - keeps.sigmoid())
    assert steps.min() + 1e-3 >= 2
    assert steps.max() - 0.1 <= 300
    assert steps.mean().item() == pytest.approx(151, rel=0.05)
    if cell == "lstm":
        assert torch.equal(bias[:2000], -keeps)
