"""A stack run over a sequence and the same stack run step by step give the same numbers."""

import pytest
import torch

from hiddenstate_models.cells import CELLS, GRU, LSTM, RecurrentStack

STACKS = [
    pytest.param("lstm", (7,), None, id="lstm-1"),
    pytest.param("lstm", (7, 5, 9), None, id="lstm-3-uneven"),
    pytest.param("lstm", (8, 6), 3, id="lstm-2-projected"),
    pytest.param("gru", (7,), None, id="gru-1"),
    pytest.param("gru", (6, 9, 4), None, id="gru-3-uneven"),
]


def make(cell: str, sizes: tuple[int, ...], projection: int | None, dtype: torch.dtype) -> RecurrentStack:
    torch.manual_seed(0)
    stack = CELLS[cell](4, sizes, projection=projection, dropout=0.5)
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return stack.to(dtype).eval()


@pytest.mark.parametrize(("cell", "sizes", "projection"), STACKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_agree_with_the_sequence(
    cell: str, sizes: tuple[int, ...], projection: int | None, dtype: torch.dtype
) -> None:
    stack = make(cell, sizes, projection, dtype)
    sequence = torch.randn(20, 3, 4, dtype=dtype)
    state = torch.randn(3, stack.state_size, dtype=dtype)
    outputs, last = stack(sequence, state)
    for x, expected in zip(sequence, outputs, strict=True):
        output, state = stack.step(x, state)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)
    assert outputs.shape == (20, 3, stack.output_size)


@pytest.mark.parametrize(("cell", "sizes", "projection"), STACKS)
def test_bfloat16_steps_stay_close(cell: str, sizes: tuple[int, ...], projection: int | None) -> None:
    stack = make(cell, sizes, projection, torch.bfloat16)
    sequence = torch.randn(5, 3, 4, dtype=torch.bfloat16)
    state = stack.initial_state(3)
    outputs, _ = stack(sequence, state)
    for x, expected in zip(sequence, outputs, strict=True):
        output, state = stack.step(x, state)
        torch.testing.assert_close(output, expected, atol=0.05, rtol=0.05)


def test_recurrent_weights_start_orthogonal_gate_by_gate() -> None:
    for stack in (LSTM(4, (6, 6)), GRU(4, (6, 6))):
        for layer in stack.layers:
            for gate in layer.get_parameter("weight_hh_l0").detach().chunk(stack.gates):
                torch.testing.assert_close(gate @ gate.T, torch.eye(6), atol=1e-5, rtol=0)


def test_lstm_forget_gates_start_open() -> None:
    layer = LSTM(4, (3,)).layers[0]
    bias = layer.get_parameter("bias_ih_l0") + layer.get_parameter("bias_hh_l0")
    assert bias.tolist() == [0] * 3 + [1] * 3 + [0] * 6


def test_dropout_acts_between_layers_in_training_only() -> None:
    stack = make("gru", (6, 6), None, torch.float32)
    sequence, state = torch.randn(4, 2, 4), stack.initial_state(2)
    torch.testing.assert_close(stack(sequence, state)[0], stack(sequence, state)[0])
    stack.train()
    assert not torch.equal(stack(sequence, state)[0], stack(sequence, state)[0])


@pytest.mark.parametrize("sizes", [(), (0,), (4, -1)])
def test_layers_need_units(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        LSTM(4, sizes)


def test_a_gru_has_no_projection() -> None:
    with pytest.raises(ValueError, match="projection is for LSTMs"):
        GRU(4, (8,), projection=4)
