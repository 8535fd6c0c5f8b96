"""The gradient-norm regulariser: against Jacobians taken one by one, and in training."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from tests.models.test_training import OPTIONS, WORDS, documents, fit, trainer
from torch import Tensor, nn

from hiddenstate_models.cells import Cell, CellOptions, Layer, RecurrentStack
from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.networks.words import NextWordConfig, NextWordNetwork
from hiddenstate_models.training.loop import Part, WindowLoss
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.regulariser import gradient_norm_penalty, recording

__all__ = ["documents"]

T, B = 4, 3


def make(cell: Cell) -> tuple[RecurrentStack, Tensor, Tensor]:
    torch.manual_seed(0)
    stack = RecurrentStack(2, CellOptions(cell=cell, hidden_sizes=(5, 4))).double()
    return stack, torch.randn(T, B, 2, dtype=torch.float64), torch.randn(B, stack.state_size, dtype=torch.float64)


def by_hand(inputs: Tensor, rows: Tensor, errors: Tensor, layer: Layer) -> list[Tensor]:
    """Every step's term of Omega through its whole Jacobian; rows [T + 1, B, row], errors [T, B, row]."""
    terms = []
    for t in range(len(inputs)):
        for b in range(B):

            def after(row: Tensor, t: int = t, b: int = b) -> Tensor:
                return layer.step(inputs[t, b][None], row[None])[1][0]

            jacobian = torch.autograd.functional.jacobian(after, rows[t, b], create_graph=True)
            terms.append(((errors[t, b] @ jacobian).norm() / errors[t, b].norm() - 1) ** 2)
    return terms


@pytest.mark.parametrize("cell", ["rnn-tanh", "lstm", "gru"])
def test_omega_and_its_gradient_equal_those_by_jacobians(cell: Cell) -> None:
    stack, inputs, state = make(cell)
    with recording(stack) as recorded:
        outputs, _ = stack(inputs, state)
    loss = (outputs * torch.arange(4)).square().sum()
    omega = gradient_norm_penalty(loss, recorded)
    omega.backward(retain_graph=True)
    got = {name: parameter.grad.clone() for name, parameter in stack.named_parameters() if parameter.grad is not None}

    terms: list[Tensor] = []
    ((_, layers),) = recorded
    for steps in layers:
        errors = torch.stack(torch.autograd.grad(loss, steps.rows[1:], retain_graph=True))
        terms += by_hand(steps.inputs.detach(), torch.stack(steps.rows).detach(), errors, steps.layer)
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(omega, expected)
    stack.zero_grad()
    expected.backward()
    for name, parameter in stack.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad, msg=name)
    assert any(gradient.abs().max() > 1e-6 for gradient in got.values())


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recording_changes_neither_outputs_nor_gradients(cell: Cell) -> None:
    stack, inputs, state = make(cell)
    gradients = []
    for context in (nullcontext(), recording(stack)):
        stack.zero_grad()
        with context:
            outputs, after = stack(inputs, state)
        (outputs.square().sum() + after.sum()).backward()
        gradients.append([outputs, after, *(parameter.grad.clone() for parameter in stack.parameters())])  # type: ignore[union-attr]
    for fused, stepped in zip(*gradients, strict=True):
        torch.testing.assert_close(stepped, fused)


def test_nearly_vanished_errors_count_and_absent_ones_do_not() -> None:
    stack, inputs, state = make("gru")
    stack, inputs, state = stack.float(), inputs.float(), state.float()
    omegas = []
    for scale in (1.0, 1e-30):
        with recording(stack) as recorded:
            outputs, _ = stack(inputs, state)
        omegas.append(float(gradient_norm_penalty(outputs[:, :1].sum() * scale, recorded).detach()))
    assert omegas[1] == pytest.approx(omegas[0], rel=1e-3)
    with recording(stack) as recorded:
        outputs, _ = stack(inputs, state)
    assert float(gradient_norm_penalty(outputs.sum() * 0, recorded).detach()) == 0


class Mean:
    """A task as far as a window's loss asks for one: the next token."""

    def loss(self, network: NextWordNetwork, outputs: Tensor, targets: Tensor, _epoch: int) -> Tensor:
        return network.head.loss(outputs, targets)


def test_descending_omega_alone_keeps_the_errors_norm() -> None:
    """Weights that make error vanish come to pass it on when nothing but Omega is learnt."""
    torch.manual_seed(0)
    network = NextWordNetwork(NextWordConfig(cell="gru", hidden_sizes=(6,), vocabulary_size=9, embedding_size=6))
    with torch.no_grad():
        for parameter in network.cells.parameters():
            parameter.mul_(0.1)
    learner = WindowLoss(network, Mean(), regularised=True)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(network.cells.parameters(), 0.05)
    tokens = torch.randint(0, 9, (13, 4))
    omegas = []
    for _ in range(60):
        window = [Part(tokens[:-1], torch.ones(4, dtype=torch.bool))]
        _, _, omega = learner(window, tokens[1:], network.initial_state(4), 0)
        optimizer.zero_grad()
        omega.backward()
        optimizer.step()
        omegas.append(float(omega.detach()))
    assert omegas[0] > 0.1
    assert omegas[-1] < omegas[0] / 4


def test_training_with_it_lowers_the_penalty(documents: list[list[str]]) -> None:
    class Watcher:
        def __init__(self) -> None:
            self.penalties: list[float] = []

        def updated(self, update: object, _progress: object, /) -> None:
            self.penalties.append(update.details["penalty"])  # type: ignore[attr-defined]

        def validated(self, _progress: object) -> None:
            pass

    seen = []
    for weight in (1e-9, 1.0):
        options = replace(OPTIONS, epochs=8, learning_rate=0.02, patience=8, gradient_regulariser=weight)
        run = trainer(documents, options, replace(WORDS, cell="gru"))
        watcher = Watcher()
        run._watchers = (watcher,)
        fit(run)
        seen.append(sum(watcher.penalties[-20:]))
    assert seen[1] < seen[0] / 2


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ConfigurationError, match="gradient_regulariser must not be negative"):
        TrainingOptions(gradient_regulariser=-1)
    with pytest.raises(ConfigurationError, match="no recurrent layers"), recording(nn.Linear(1, 1)):
        pass
