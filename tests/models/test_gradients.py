"""Gradients whose fate is known beforehand are measured, judged and reported as such."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hiddenstate_models.cells import Cell, CellOptions, Layer, RecurrentStack
from hiddenstate_models.data.lanes import Lanes
from hiddenstate_models.errors import DataError
from hiddenstate_models.gradients.gates import gate_saturation
from hiddenstate_models.gradients.jacobians import jacobian
from hiddenstate_models.gradients.measurement import Effort, measure
from hiddenstate_models.gradients.remedies import Subject
from hiddenstate_models.gradients.survival import Survival, survivals
from hiddenstate_models.gradients.unrolling import Unrolled, unroll
from hiddenstate_models.gradients.verdict import judge
from hiddenstate_models.networks.distributions import Prediction, negative_log_likelihood
from hiddenstate_models.networks.forecasting import ForecastingConfig, ForecastingNetwork
from hiddenstate_models.networks.scaling import LARGEST_RATIO
from hiddenstate_models.training.forecasting import ForecastingOptions, ForecastingTask
from hiddenstate_models.training.options import TrainingOptions

EFFORT = Effort(steps=40, windows=2, lanes=3, targets=4, jacobians=3)
INPUT = 3
SAID = {"vanish": "vanishes", "explode": "explodes", "live": "lives"}


class Readout(nn.Module):
    """A stack whose outputs are the predictions."""

    def __init__(self, cell: Cell, sizes: Sequence[int], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cells = RecurrentStack(INPUT, CellOptions(cell=cell, hidden_sizes=tuple(sizes), **options))

    def initial_state(self, batch: int) -> Tensor:
        return self.cells.initial_state(batch)

    def forward(self, sequence: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.cells(sequence.to(state.dtype), state)
        return outputs, state


class Sum:
    """The loss of a step is the sum of its outputs, so that its gradient by them is all ones."""

    def __init__(self, lengths: Sequence[int], steps: int = 8) -> None:
        rng = np.random.default_rng(0)
        documents = [(rng.normal(size=(n, INPUT)).astype(np.float32), np.ones(n, np.float32)) for n in lengths]
        self.lanes = Lanes(documents, lanes=4, steps=steps, padding=math.nan, whole=True)

    def loss(self, _network: nn.Module, outputs: Tensor, targets: Tensor, _epoch: int) -> Tensor:
        return (outputs.sum(-1) * targets.nan_to_num(0.0)).sum()


def linear(matrix: Any) -> Readout:
    """h_t = U h_(t-1) + 1: ReLUs whose arguments are never negative, the input left out."""
    network = Readout("rnn-relu", [len(matrix)])
    for name, parameter in network.named_parameters():
        if "weight_hh" in name:
            parameter.data = torch.tensor(matrix, dtype=torch.float32)
        else:
            nn.init.constant_(parameter, 0.5 if "bias" in name else 0.0)
    return network


def cycle(scale: float) -> Any:
    """Every unit hands its value on to the next one, times `scale`."""
    return scale * np.roll(np.eye(5), 1, axis=0)


def subject(cell: str = "rnn-relu", horizon: int = 40, **settings: Any) -> Subject:
    return Subject("a network", "for a test", cell, horizon, settings)


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.0, 1.1])
def test_a_linear_network_scales_gradients_by_the_same_factor_at_every_step(scale: float) -> None:
    found = measure(linear(cycle(scale)), Sum([90] * 4), EFFORT)
    expected = scale ** np.arange(41.0)
    for survival in (found.whole, *found.layers):
        for values in (survival.low, survival.median, survival.high):
            np.testing.assert_allclose(values, expected, rtol=1e-5)
        assert survival.factor == pytest.approx(scale, rel=1e-4)
        assert survival.first_norm == pytest.approx(math.sqrt(5))
    assert found.spectra[0].radii == pytest.approx([scale] * 3, rel=1e-5)
    np.testing.assert_allclose(found.spectra[0].singular_values, scale, rtol=1e-5)


def test_a_matrix_that_is_not_normal_lets_gradients_grow_before_they_shrink() -> None:
    matrix = np.triu(np.full((4, 4), 0.9))
    found = measure(linear(matrix), Sum([90] * 4), EFFORT)
    gradient = np.ones(4)
    expected = []
    for _ in range(41):
        expected.append(np.linalg.norm(gradient) / 2)
        gradient = matrix.T @ gradient
    np.testing.assert_allclose(found.whole.median, expected, rtol=1e-4)
    assert max(expected) > 10
    # The eigenvalues of a defective matrix are known to the fourth root of what the matrix is known to.
    assert found.spectra[0].radius == pytest.approx(0.9, rel=0.02)
    assert found.spectra[0].largest == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-5)


@pytest.mark.parametrize(("scale", "kind"), [(0.8, "vanish"), (1.0, "live"), (1.25, "explode")])
def test_the_verdict_is_what_the_factor_says(scale: float, kind: str) -> None:
    verdict = judge(subject(), measure(linear(cycle(scale)), Sum([90] * 4), EFFORT)).verdict
    assert verdict.kind == kind
    assert verdict.headline.startswith(f"The gradient {SAID[kind]}: ")


def test_the_verdict_depends_on_how_far_the_network_is_to_look() -> None:
    found = measure(linear(cycle(0.8)), Sum([90] * 4), EFFORT)
    assert judge(subject(horizon=15), found).verdict.kind == "live"
    assert judge(subject(horizon=25), found).verdict.kind == "vanish"


def test_a_network_of_rectified_units_that_starts_as_the_identity_lives() -> None:
    found = measure(Readout("rnn-relu", [16]), Sum([90] * 4), EFFORT)
    assert judge(subject(), found).verdict.kind == "live"
    assert found.whole.left(40) > 0.2


def test_half_life_and_reach_are_those_of_the_median() -> None:
    shares = [0.5 ** (k / 10) for k in range(101)]
    survival = Survival(shares, shares, shares, [9] * 101, 1.0)
    assert survival.half_life == pytest.approx(10)
    assert survival.reach(0.45) == 11
    assert survival.reach(1e-9) is None
    assert survival.left(20) == pytest.approx(0.25)
    assert survival.left(1000) == shares[-1]


CELLS: dict[str, tuple[Cell, list[int], dict[str, Any]]] = {
    "lstm": ("lstm", [4, 3], {}),
    "gru": ("gru", [4, 3], {}),
    "elman": ("rnn-tanh", [4, 3], {}),
    "rectified": ("rnn-relu", [4, 3], {}),
    "jordan": ("jordan", [4], {}),
    "jordan-projected": ("jordan", [5], {"projection": 3}),
    "peepholes": ("lstm", [4, 3], {"peepholes": True}),
    "coupled": ("lstm", [4, 3], {"coupled": True}),
    "projected": ("lstm", [4, 4], {"projection": 3}),
    "normalised-lstm": ("lstm", [4, 3], {"layer_norm": True, "peepholes": True}),
    "normalised-coupled": ("lstm", [4, 3], {"layer_norm": True, "coupled": True}),
    "normalised-gru": ("gru", [4, 3], {"layer_norm": True}),
    "normalised-elman": ("rnn-tanh", [4, 3], {"layer_norm": True}),
}


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", CELLS)
def test_gradients_are_those_by_a_state_put_in_its_place(kind: str, layer: int) -> None:
    cell, sizes, options = CELLS[kind]
    network, task = Readout(cell, sizes, **options), Sum([60] * 4)
    layer = min(layer, len(sizes) - 1)
    (stretch,) = unroll(network, task, 40, lanes=2, windows=1)
    exact = network.double()
    sequence = torch.from_numpy(np.concatenate([chunk.inputs[:, :2] for chunk in task.lanes.epoch(0)])).double()
    time = 37
    for back in (0, 1, 7, 30):
        rows = list(exact.initial_state(2).split(exact.cells.row_sizes, dim=1))
        for step, x in enumerate(sequence[: time + 1]):
            for depth, cells in enumerate(exact.cells.layers):
                x, rows[depth] = cast(Layer, cells).step(x, rows[depth])
                if (step, depth) == (time - back, layer):
                    leaf = rows[depth] = rows[depth].detach().requires_grad_()
                    x = leaf[:, : x.shape[1]]
        (expected,) = torch.autograd.grad(x.sum(), leaf)
        (got,) = torch.autograd.grad(
            stretch.loss(time, 0).value, stretch.layers[layer].after[time - back], retain_graph=True
        )
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("kind", CELLS)
def test_jacobians_are_those_of_a_step(kind: str) -> None:
    cell, sizes, options = CELLS[kind]
    network = Readout(cell, sizes, **options)
    (stretch,) = unroll(network, Sum([30] * 4), 20, lanes=2, windows=1)
    for layer in range(len(sizes)):
        steps = stretch.layers[layer]
        x, row = steps.inputs[9][1].detach(), steps.before[9][1].detach()

        def step(row: Tensor, layer: Any = steps.layer, x: Tensor = x) -> Tensor:
            after: Tensor = layer.step(x.unsqueeze(0), row.unsqueeze(0))[1]
            return after[0]

        expected = torch.func.jacrev(step)(row)
        torch.testing.assert_close(jacobian(stretch, layer, 9, 1), expected)


def test_the_loss_at_a_horizon_is_followed_back_through_what_writes_and_what_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by autograd over a forecast made step by step, each state on the way put in its place."""
    torch.manual_seed(0)
    config = ForecastingConfig(hidden_sizes=(4,), horizon=5, seasons=(2,))
    network = ForecastingNetwork(config)
    series = [np.random.default_rng(i).normal(size=(70, 1)).cumsum(0) for i in range(4)]
    options = ForecastingOptions(horizon=5, origins=3, teacher_forcing=0.7)
    task = ForecastingTask(series, [], config, TrainingOptions(lanes=2, k1=10, k2=10), options)
    (stretch,) = unroll(network, task, 40, lanes=2, windows=1)
    exact, lane = network.double().eval(), 1
    chunks = list(task.lanes.epoch(0))[:4]
    values = torch.from_numpy(np.concatenate([chunk.inputs[:, [lane]] for chunk in chunks]))
    time, place = [(10 * i + int(at), j) for i, c in enumerate(chunks) for j, at in enumerate(c.places.tolist())][-1]  # type: ignore[union-attr]
    found = stretch.loss(time, 0)
    assert len(found.written) == 1
    assert len(found.written[0]) == 5
    target = torch.from_numpy(chunks[time // 10].targets[place, lane, -1])

    def loss(back: int, row: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss of the last step written, and the state `back` steps before it, replaced by `row` if given."""
        state, kept = exact.initial_state(1), torch.zeros(0)
        for at, value in enumerate(values[: time + 1]):
            origins, state = exact.step(value, state)
            if back >= 5 and at == time - (back - 5):
                kept = state[:, : exact.cells.state_size]
                if row is not None:
                    state = torch.cat((row, state[:, exact.cells.state_size :]), dim=1)
                    origins = origins._replace(states=row.unsqueeze(0))
        steps, original = [0], exact.decoder.step

        def step(x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal kept
            output, after = original(x, before)
            steps[0] += 1
            if back < 5 and steps[0] == 5 - back:
                kept = after
                if row is not None:
                    after, output = row, row
            return output, after

        monkeypatch.setattr(exact.decoder, "step", step)
        prediction = exact.decode(origins)
        monkeypatch.undo()
        scaled = (target - origins.anchors[0, 0]) / origins.units[0, 0]
        last = Prediction(*(field[0, 0, -1] for field in prediction))
        return negative_log_likelihood(last, scaled.clamp(-LARGEST_RATIO, LARGEST_RATIO)).sum(), kept

    whole = survivals([stretch], 40, 8, 0)[0]
    assert whole.steps > 20
    for back in (0, 2, 4, 5, 9):
        _, row = loss(back, None)
        leaf = row.detach().requires_grad_()
        (expected,) = torch.autograd.grad(loss(back, leaf)[0], leaf)
        state = found.written[0][4 - back] if back < 5 else stretch.layers[0].after[time - (back - 5)]
        (got,) = torch.autograd.grad(found.value, state, retain_graph=True)
        torch.testing.assert_close(got[2 * place + lane if back < 5 else lane], expected[0], atol=1e-7, rtol=1e-4)


def test_nothing_is_measured_across_documents() -> None:
    found = measure(linear(cycle(1.0)), Sum([6] * 40), EFFORT)
    assert found.whole.steps == 5
    assert found.whole.pairs == sorted(found.whole.pairs, reverse=True)
    evidence = " ".join(judge(subject(), found).verdict.evidence)
    assert "No document is long enough to look 40 steps back; 5 steps were measured" in evidence


def test_steps_without_a_target_have_no_loss_to_follow() -> None:
    class LastOnly(Sum):
        def __init__(self) -> None:
            super().__init__([20] * 12)
            for _, targets in self.lanes._documents:
                targets[:-1] = np.nan

    found = measure(linear(cycle(0.9)), LastOnly(), EFFORT)
    assert found.whole.steps == 19
    np.testing.assert_allclose(found.whole.median, 0.9 ** np.arange(20.0), rtol=1e-5)


def test_documents_of_one_step_cannot_be_looked_back_in() -> None:
    with pytest.raises(DataError, match="no document is long enough"):
        measure(linear(cycle(1.0)), Sum([1] * 8), EFFORT)


def test_what_is_measured_stays_as_it_was() -> None:
    network = Readout("lstm", [4])
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure(network, Sum([30] * 4), EFFORT)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def stretch_with_biases(cell: Cell, gates: Sequence[float]) -> list[Unrolled]:
    network = Readout(cell, [6])
    for name, parameter in network.named_parameters():
        nn.init.zeros_(parameter)
        if name.endswith("bias_ih_l0"):
            for bias, value in zip(parameter.data.chunk(len(gates)), gates, strict=True):
                bias.fill_(value)
    return list(unroll(network, Sum([30] * 4), 20, lanes=2, windows=1))


def test_gates_made_shut_or_open_by_hand_are_found_so() -> None:
    found = {gate.name: gate for gate in gate_saturation(stretch_with_biases("lstm", [-9.0, 9.0, 0.0, 0.0]))}
    assert {name: (gate.shut, gate.open) for name, gate in found.items()} == {
        "input": (1.0, 0.0),
        "forget": (0.0, 1.0),
        "output": (0.0, 0.0),
    }
    assert found["output"].mean == pytest.approx(0.5)
    found = {gate.name: gate for gate in gate_saturation(stretch_with_biases("gru", [9.0, -9.0, 0.0]))}
    assert {name: (gate.shut, gate.open) for name, gate in found.items()} == {"reset": (0.0, 1.0), "update": (1.0, 0.0)}
    assert gate_saturation(stretch_with_biases("rnn-tanh", [0.0])) == []


@pytest.mark.parametrize(
    ("kind", "gates"),
    [
        ("peepholes", {"input", "forget", "output"}),
        ("coupled", {"input", "forget", "output"}),
        ("normalised-lstm", {"input", "forget", "output"}),
        ("normalised-gru", {"reset", "update"}),
        ("jordan", set()),
    ],
)
def test_every_cell_is_measured_and_judged(kind: str, gates: set[str]) -> None:
    cell, sizes, options = CELLS[kind]
    found = measure(Readout(cell, sizes, **options), Sum([60] * 4), EFFORT)
    assert {gate.name for gate in found.gates} == gates
    assert len(found.layers) == len(found.spectra) == len(sizes)
    assert found.whole.steps == 40
    assert judge(subject(cell, **options), found).verdict.kind in ("vanish", "live", "explode")
