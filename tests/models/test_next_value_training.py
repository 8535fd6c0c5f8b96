"""Next-value training and evaluation, end to end on small made-up series."""

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hiddenstate_models.data.series import Series
from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.evaluation.commands import evaluate
from hiddenstate_models.evaluation.values import ERROR, PERIOD, RELATIVE, SEASONAL, averages, predict, value_scores
from hiddenstate_models.networks.values import NextValueConfig, NextValueNetwork
from hiddenstate_models.training import commands
from hiddenstate_models.training.augmentation import LONGEST, altered_copies
from hiddenstate_models.training.checkpoint import load_checkpoint
from hiddenstate_models.training.next_value import (
    NEXT_VALUE,
    NextValueOptions,
    NextValueTask,
    scaled_targets,
    validate,
)
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Told
from hiddenstate_models.training.run import load_weights
from hiddenstate_models.training.series_options import cut

Floats = npt.NDArray[np.float64]

VALUES = NextValueOptions(hidden="8", session=200)
OPTIONS = TrainingOptions(epochs=4, lanes=8, k1=16, k2=16, warmup=4, learning_rate=0.02, accelerator="cpu")


def wave(rows: int, seed: int) -> Floats:
    """[rows, 1]: a daily cycle with a little noise, in a unit and around a level of its own."""
    generator = np.random.default_rng(seed)
    cycle = np.sin(2 * np.pi * (np.arange(rows) + generator.integers(24)) / 24)
    noisy = cycle + 0.03 * generator.normal(size=rows)
    scaled: Floats = (generator.uniform(-5, 5) + noisy) * 10 ** generator.uniform(-3, 3)
    return scaled[:, None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sensors a to d as CSV files."""
    for seed, name in enumerate("abcd"):
        lines = "".join(f"{value}\n" for value in wave(800, seed)[:, 0])
        (tmp_path / f"{name}.csv").write_text("load\n" + lines)
    return tmp_path


def train(folder: Path, out: str, *, resume: bool = False, max_updates: int | None = None, augment: int = 0) -> bool:
    values = NextValueOptions(hidden="8", session=200, dropout=0.1, augment=augment)
    if resume:
        return commands.resume(NEXT_VALUE, folder / out, max_updates=max_updates)
    told = Told([str(folder / "*.csv")], [str(folder / "d.csv")], values, OPTIONS)
    return commands.train(NEXT_VALUE, told, folder / out, max_updates=max_updates)


def test_learns_a_cycle_it_can_apply_to_another_sensor(folder: Path) -> None:
    assert train(folder, "run")
    scores = evaluate(folder / "run", [], [], as_json=False)
    assert scores == json.loads((folder / "run" / "scores.json").read_text())
    rows = scores["d/load"]
    assert rows["model"][RELATIVE] < 0.6
    assert rows["persistence"][RELATIVE] == 1
    assert rows[SEASONAL][PERIOD] == 24
    assert 0.8 < rows["model"]["90 % coverage"] < 0.99
    assert rows["model"]["surprise (nats)"] < rows["persistence"]["surprise (nats)"]


def test_resumes_to_the_bit(folder: Path) -> None:
    assert not train(folder, "straight", max_updates=10, augment=1)
    assert not train(folder, "stopped", max_updates=5, augment=1)
    assert not train(folder, "stopped", resume=True, max_updates=10)
    straight, resumed = (load_checkpoint(folder / run / "checkpoint") for run in ("straight", "stopped"))
    assert straight.weights.keys() == resumed.weights.keys()
    for name, weights in straight.weights.items():
        torch.testing.assert_close(resumed.weights[name], weights, rtol=0, atol=0)
    torch.testing.assert_close(resumed.state, straight.state, rtol=0, atol=0)


def test_the_files_to_validate_on_are_not_learnt_from(folder: Path) -> None:
    with pytest.raises(DataError, match="every file to learn from is also one to validate on"):
        commands.train(
            NEXT_VALUE, Told([str(folder / "a.csv")], [str(folder / "*.csv")], VALUES, OPTIONS), folder / "run"
        )


def test_without_validation_files_the_ends_are_held_out(folder: Path) -> None:
    data = [str(folder / "a.csv"), str(folder / "b.csv")]
    assert commands.train(NEXT_VALUE, Told(data, [], VALUES, OPTIONS), folder / "run")
    assert (
        load_weights(folder / "run").keys()
        == dict(NextValueNetwork(VALUES.network(["value"])).named_parameters()).keys()
    )


def test_joint_columns_and_chosen_targets(tmp_path: Path) -> None:
    both = np.hstack([wave(300, 0), wave(300, 1)])
    (tmp_path / "pair.csv").write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in both))
    values = NextValueOptions(layout="joint", targets="y", hidden="4", distribution="gaussian")
    options = TrainingOptions(epochs=1, lanes=2, k1=16, k2=32, accelerator="cpu")
    assert commands.train(NEXT_VALUE, Told([str(tmp_path / "pair.csv")], [], values, options), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["columns"] == ["x", "y"]
    assert record["network"]["targets"] == [1]
    scores = evaluate(tmp_path / "run", [str(tmp_path / "pair.csv")], [], as_json=True)
    assert list(scores) == ["pair"]
    held_out = evaluate(tmp_path / "run", [], [], as_json=True)
    assert list(held_out) == ["pair"]
    assert held_out["pair"]["persistence"] != scores["pair"]["persistence"], "the last tenth"
    (tmp_path / "half.csv").write_text("y\n1\n2\n")
    with pytest.raises(DataError, match=r"half.csv lacks some of the columns x, y that the model reads"):
        evaluate(tmp_path / "run", [str(tmp_path / "half.csv")], [], as_json=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"session": 1}, "session must be at least 2"), ({"augment": -1}, "augment must be at least 0")],
)
def test_refuses_settings(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        NextValueOptions(**fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="no column 'z' to predict; there are x, y"):
        NextValueOptions(targets="z").network(["x", "y"])


def test_values_are_not_rounded_by_mixed_precision(tmp_path: Path) -> None:
    options = TrainingOptions(precision="bf16-mixed")
    with pytest.raises(ConfigurationError, match="needs --precision 32-true"):
        commands.train(NEXT_VALUE, Told([str(tmp_path / "a.csv")], [], VALUES, options), tmp_path / "run")


def test_missing_values_are_read_but_not_scored() -> None:
    network = NextValueNetwork(NextValueConfig(hidden_sizes=(4,)))
    holed = wave(100, 0)
    holed[20:40] = np.nan
    config, options = network.config, TrainingOptions(lanes=1, k1=99, k2=99)
    task = NextValueTask([holed], [holed], config, options, VALUES)
    (chunk,) = task.lanes.epoch(0)
    assert task.count(chunk) == 79
    targets = torch.from_numpy(chunk.targets)
    forecast, _ = network(torch.from_numpy(chunk.inputs), network.initial_state(1))
    loss = task.loss(network, forecast, targets, 0).detach()
    assert loss.isfinite()
    assert scaled_targets(forecast, targets)[1].sum() == 79
    assert validate(network, [holed])["loss"] == pytest.approx(float(loss) / 79, rel=1e-4)


def test_cutting_keeps_every_step_but_those_across() -> None:
    pieces = cut([wave(10, 0), wave(1, 1)], 4)
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(pieces), wave(10, 0))


def test_altered_copies_repeat_and_stay_usable() -> None:
    series = [wave(900, 0), np.full((500, 1), 7.0), np.where(np.arange(700)[:, None] % 50 == 0, np.nan, wave(700, 2))]
    copies, again = (altered_copies(series, 40, seed=3) for _ in range(2))
    assert len(copies) == 120
    for copy, same in zip(copies, again, strict=True):
        np.testing.assert_array_equal(copy, same)
        assert copy.shape[1] == 1
        assert 40 < len(copy) <= LONGEST
        assert not np.isinf(copy).any()
        assert not np.isnan(copy).all()
    assert any(not np.array_equal(a, b) for a, b in zip(copies, altered_copies(series, 40, seed=4), strict=True))


def test_predictions_belong_to_their_rows() -> None:
    network = NextValueNetwork(NextValueConfig(hidden_sizes=(4,)))
    series = [wave(30, 0), wave(700, 1)]
    with torch.no_grad():
        for values, prediction in zip(series, predict(network, series), strict=True):
            state = network.initial_state(1)
            assert prediction.locations[0].isnan()
            for t in range(20):
                forecast, state = network.step(torch.from_numpy(values[[t]]), state)
                torch.testing.assert_close(
                    prediction.locations[[t + 1]], forecast.prediction.locations, rtol=1e-6, atol=0
                )


def test_scores_against_a_model_that_is_persistence() -> None:
    network = NextValueNetwork(NextValueConfig(hidden_sizes=(4,)))
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([0.0, 0.0, math.log(math.e**0.9 - 1)]))
    still = Series("still", ("value",), np.full((50, 1), 3.0))
    scores = value_scores(network, [Series("wave", ("value",), wave(300, 0)), still])
    assert list(scores) == ["wave"]
    assert scores["wave"]["model"][RELATIVE] == pytest.approx(1, rel=1e-9)
    assert scores["wave"]["model"][ERROR] == pytest.approx(scores["wave"]["persistence"][ERROR])
    assert averages(scores)["model"][RELATIVE] == pytest.approx(1, rel=1e-9)
