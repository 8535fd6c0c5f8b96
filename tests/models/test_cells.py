"""A stack run over a sequence, the same stack run step by step, and the papers' equations give the same numbers."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import equations

from hiddenstate_models.bundle import CellShapes
from hiddenstate_models.cells import CellOptions, RecurrentStack
from hiddenstate_models.errors import ConfigurationError

STACKS: dict[str, dict[str, Any]] = {
    "rnn-tanh-1": {"cell": "rnn-tanh", "hidden_sizes": (7,)},
    "rnn-tanh-3-uneven": {"cell": "rnn-tanh", "hidden_sizes": (6, 9, 4)},
    "rnn-relu-2": {"cell": "rnn-relu", "hidden_sizes": (7, 5)},
    "lstm-1": {"cell": "lstm", "hidden_sizes": (7,)},
    "lstm-3-uneven": {"cell": "lstm", "hidden_sizes": (7, 5, 9)},
    "lstm-2-projected": {"cell": "lstm", "hidden_sizes": (8, 6), "projection": 3},
    "gru-1": {"cell": "gru", "hidden_sizes": (7,)},
    "gru-3-uneven": {"cell": "gru", "hidden_sizes": (6, 9, 4)},
    "none-2": {"cell": "none", "hidden_sizes": (7, 5)},
    "jordan": {"cell": "jordan", "hidden_sizes": (7,)},
    "jordan-narrow": {"cell": "jordan", "hidden_sizes": (7,), "projection": 2},
    "rnn-tanh-norm": {"cell": "rnn-tanh", "hidden_sizes": (7, 5), "layer_norm": True},
    "rnn-relu-norm": {"cell": "rnn-relu", "hidden_sizes": (7,), "layer_norm": True},
    "gru-norm": {"cell": "gru", "hidden_sizes": (7, 5), "layer_norm": True},
    "gru-residual": {"cell": "gru", "hidden_sizes": (6, 6, 6), "residual": True},
    "none-residual": {"cell": "none", "hidden_sizes": (6, 6), "residual": True},
    **{
        "-".join(["lstm", *chosen]): {
            "cell": "lstm",
            "hidden_sizes": (6, 6) if "projection" not in chosen else (7, 5),
            **{name: 4 if name == "projection" else True for name in chosen},
        }
        for number in range(1, 6)
        for chosen in combinations(("layer_norm", "peepholes", "coupled", "projection", "residual"), number)
    },
}
each_stack = pytest.mark.parametrize("options", STACKS.values(), ids=STACKS.keys())


def make(options: dict[str, Any], dtype: torch.dtype = torch.float32) -> RecurrentStack:
    torch.manual_seed(0)
    stack = RecurrentStack(4, CellOptions(**{"dropout": 0.5, **options}))
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return stack.to(dtype).eval()


@each_stack
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_agree_with_the_sequence(options: dict[str, Any], dtype: torch.dtype) -> None:
    stack = make(options, dtype)
    sequence = torch.randn(20, 3, 4, dtype=dtype)
    state = torch.randn(3, stack.state_size, dtype=dtype)
    outputs, last = stack(sequence, state)
    for x, expected in zip(sequence, outputs, strict=True):
        output, state = stack.step(x, state)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)
    assert outputs.shape == (20, 3, stack.output_size)


@each_stack
def test_gradients_through_the_sequence_are_those_through_its_steps(options: dict[str, Any]) -> None:
    stack = make(options, torch.float64)
    sequence = torch.randn(9, 3, 4, dtype=torch.float64, requires_grad=True)
    state = torch.randn(3, stack.state_size, dtype=torch.float64, requires_grad=True)
    asked = (sequence, state, *stack.parameters())
    outputs, last = stack(sequence, state)
    weights, of_last = torch.randn_like(outputs), torch.randn_like(last)
    at_once = torch.autograd.grad((outputs * weights).sum() + (last * of_last).sum(), asked, materialize_grads=True)
    stepped, row = [], state
    for x in sequence:
        output, row = stack.step(x, row)
        stepped.append(output)
    loss = (torch.stack(stepped) * weights).sum() + (row * of_last).sum()
    one_by_one = torch.autograd.grad(loss, asked, materialize_grads=True)
    for found, expected in zip(at_once, one_by_one, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@each_stack
def test_the_sequence_agrees_with_the_papers(options: dict[str, Any]) -> None:
    stack = make(options, torch.float64)
    sequence = torch.randn(12, 3, 4, dtype=torch.float64)
    state = torch.randn(3, stack.state_size, dtype=torch.float64)
    outputs, last = stack(sequence, state)
    x, parts = sequence.numpy(), np.split(state.numpy(), np.cumsum(stack.row_sizes)[:-1], axis=1)
    for depth, layer in enumerate(stack.layers):
        weights = {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}
        seen = []
        for inputs in x:
            output, parts[depth] = equations.STEPS[options["cell"]](weights, inputs, parts[depth])
            seen.append(output + inputs if depth and options.get("residual") else output)
        x = np.stack(seen)
    np.testing.assert_allclose(outputs.detach(), x, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(last.detach(), np.hstack(parts), rtol=1e-10, atol=1e-10)


@each_stack
def test_bfloat16_steps_stay_close(options: dict[str, Any]) -> None:
    stack = make(options, torch.bfloat16)
    sequence = torch.randn(5, 3, 4, dtype=torch.bfloat16)
    state = stack.initial_state(3)
    outputs, _ = stack(sequence, state)
    for x, expected in zip(sequence, outputs, strict=True):
        output, state = stack.step(x, state)
        torch.testing.assert_close(output, expected, atol=0.05, rtol=0.05)


@each_stack
def test_a_bundle_knows_the_shapes_of_a_stack(options: dict[str, Any]) -> None:
    stack = make(options)
    shapes = CellShapes.model_validate(stack.options.to_dict())
    assert shapes.cell_tensors(4) == {f"cells.{name}": tuple(p.shape) for name, p in stack.named_parameters()}
    assert (shapes.row_sizes, shapes.output_size) == (stack.row_sizes, stack.output_size)


def test_a_bundle_knows_every_option() -> None:
    assert set(CellShapes.model_fields) == set(CellOptions(cell="gru", hidden_sizes=(1,)).to_dict())


def test_options_survive_json_types_and_may_be_left_out() -> None:
    options = CellOptions(cell="lstm", hidden_sizes=(8, 4), projection=2, initialisation="chrono", t_max=50)
    assert CellOptions.from_dict(options.to_dict()) == options
    assert CellOptions.from_dict({"cell": "gru", "hidden_sizes": [3]}) == CellOptions(cell="gru", hidden_sizes=(3,))


def test_a_taught_jordan_network_is_fed_what_each_output_should_have_been() -> None:
    stack = make({"cell": "jordan", "hidden_sizes": (7,), "projection": 2}, torch.float64)
    sequence, targets = torch.randn(6, 3, 4, dtype=torch.float64), torch.randn(6, 3, 2, dtype=torch.float64)
    state = torch.randn(3, 2, dtype=torch.float64)
    outputs, last = stack(sequence, state, targets)
    for t, expected in enumerate(outputs):
        output, _ = stack.step(sequence[t], targets[t - 1] if t else state)
        torch.testing.assert_close(output, expected)
    torch.testing.assert_close(last, outputs[-1])
    # What it was taught it gives when it is right: fed its own outputs as targets, it is its free self.
    free, _ = stack(sequence, state)
    torch.testing.assert_close(stack(sequence, state, free)[0], free)


def test_a_jordan_network_remembers_nothing_but_its_output() -> None:
    stack = make({"cell": "jordan", "hidden_sizes": (7,), "projection": 1})
    assert stack.state_size == 1
    output, state = stack.step(torch.randn(3, 4), torch.randn(3, 1))
    assert torch.equal(output, state)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("cell", ["rnn-tanh", "lstm", "gru"])
def test_weight_dropout_drops_recurrent_weights_for_a_whole_sequence(cell: str, layer_norm: bool) -> None:
    options = {"cell": cell, "hidden_sizes": (40,), "layer_norm": layer_norm, "weight_dropout": 0.5, "dropout": 0.0}
    stack = make(options)
    sequence, state = torch.randn(2, 1, 4).expand(2, 3, 4), torch.ones(1, stack.state_size).expand(3, -1)
    plain, _ = stack(sequence, state)
    stack.train()
    torch.manual_seed(1)
    first, _ = stack(sequence, state)
    second, _ = stack(sequence, state)
    assert not torch.allclose(first, plain)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(first[:, 0], first[:, 2])  # one mask for all lanes

    torch.manual_seed(1)
    weight = stack.layers[0].get_parameter("weight_hh_l0")
    weight.data.copy_(torch.nn.functional.dropout(weight.data, 0.5))
    torch.testing.assert_close(stack.eval()(sequence, state)[0], first)
    stack.train()
    stack(sequence, state)[0].sum().backward()
    assert weight.grad is not None
    assert 0.3 < float((weight.grad == 0).float().mean()) < 0.7


def test_variational_dropout_drops_the_same_units_at_every_step() -> None:
    stack = make({"cell": "gru", "hidden_sizes": (6,), "variational": True}).train()
    dropped = stack.drop(torch.ones(50, 8, 6))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert not torch.equal(dropped[0, 0], dropped[0, 1])
    assert torch.equal(stack.eval().drop(torch.ones(5, 1, 6)), torch.ones(5, 1, 6))


def test_a_sequence_in_pieces_drops_what_it_would_in_one() -> None:
    options = {"cell": "gru", "hidden_sizes": (6, 6), "dropout": 0.5, "variational": True, "weight_dropout": 0.5}
    stack = make(options).train()
    sequence, state = torch.randn(7, 2, 4), torch.randn(2, stack.state_size)
    torch.manual_seed(1)
    whole, _ = stack(sequence, state)
    torch.manual_seed(1)
    with stack.one_sequence():
        first, between = stack(sequence[:3], state)
        second, _ = stack(sequence[3:], between)
    torch.testing.assert_close(torch.cat((first, second)), whole)
    torch.manual_seed(1)
    first, between = stack(sequence[:3], state)
    assert not torch.allclose(stack(sequence[3:], between)[0], whole[3:])


def test_dropout_acts_between_layers_in_training_only() -> None:
    stack = make({"cell": "gru", "hidden_sizes": (6, 6)})
    sequence, state = torch.randn(4, 2, 4), stack.initial_state(2)
    torch.testing.assert_close(stack(sequence, state)[0], stack(sequence, state)[0])
    stack.train()
    assert not torch.equal(stack(sequence, state)[0], stack(sequence, state)[0])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"hidden_sizes": ()}, "at least one layer"),
        ({"hidden_sizes": (0,)}, "at least one layer"),
        ({"hidden_sizes": (4, -1)}, "at least one layer"),
        ({"projection": 4}, "projection is for LSTMs and Jordan networks; the cell is gru"),
        ({"cell": "lstm", "projection": 0}, "projection must be at least 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"initialisation": "identity"}, "for rnn-tanh and rnn-relu; the cell is gru"),
        ({"cell": "rnn-tanh", "initialisation": "chrono"}, "for LSTMs and GRUs"),
        ({"cell": "none", "layer_norm": True}, "layer normalisation is for recurrent hidden units; the cell is none"),
        ({"peepholes": True}, "peepholes are for LSTMs"),
        ({"coupled": True}, "coupled gates are for LSTMs"),
        ({"cell": "none", "weight_dropout": 0.1}, "weight dropout is for recurrent weights"),
        ({"weight_dropout": 1.0}, "weight_dropout must be at least 0 and below 1"),
        ({"cell": "jordan", "hidden_sizes": (4, 4)}, "one hidden layer"),
        ({"residual": True, "hidden_sizes": (4, 5)}, "layers of one size"),
        ({"t_max": 2}, "t_max must be at least 3"),
    ],
)
def test_options_that_no_stack_can_have(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        CellOptions(**{"cell": "gru", "hidden_sizes": (8,), **options})
