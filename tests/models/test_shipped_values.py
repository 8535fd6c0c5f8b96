"""The shipped next-value model on a sensor that does not exist, so it cannot have been trained on it."""

from pathlib import Path

import numpy as np
import pytest

from hiddenstate_models.bundle import Bundle, shipped_bundles
from hiddenstate_models.evaluation.commands import evaluate

FOLDER = shipped_bundles() / "next-value" / "1"


@pytest.mark.parametrize(("level", "unit"), [(20.0, 1.0), (1.7e9, 1.0), (0.0, 1e-9), (-5e4, 300.0)])
def test_is_useful_on_an_unknown_sensor(tmp_path: Path, level: float, unit: float) -> None:
    generator = np.random.default_rng(0)
    hours = np.arange(1500)
    daily = 4 * np.sin(2 * np.pi * hours / 24) + np.sin(2 * np.pi * hours / 12 + 1)
    values = level + unit * (daily + 0.2 * generator.normal(size=len(hours)))
    (tmp_path / "roof.csv").write_text("value\n" + "".join(f"{float(value)!r}\n" for value in values))
    rows = evaluate(FOLDER, [str(tmp_path / "roof.csv")], [], as_json=True)["roof/value"]
    assert rows["model"]["of persistence's"] < 0.6
    assert 0.85 < rows["model"]["90 % coverage"] < 0.97
    assert rows["model"]["surprise (nats)"] < rows["persistence"]["surprise (nats)"]


def test_says_how_good_it_is() -> None:
    config = Bundle.load(FOLDER).config
    scores = config.scores["DUQ_hourly/DUQ_MW"]
    assert scores["model"]["mean error"] < 0.7 * scores["persistence"]["mean error"]
    assert 0.87 < scores["model"]["90 % coverage"] < 0.93
    assert config.training["command"].startswith("hiddenstate-models train next-value")
