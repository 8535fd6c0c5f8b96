"""A small run of `bench.rewind`: who goes back again replays less than the first time."""

from pathlib import Path
from typing import Literal

import pytest
from bench import rewind

from hiddenstate_models.export import random_bundle
from hiddenstate_server.settings import load
from hiddenstate_server.versions.repository import load_models


@pytest.mark.parametrize("task", ["next-word", "next-value"])
def test_going_back_again_is_cheaper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Literal["next-word", "next-value"]
) -> None:
    monkeypatch.setattr(rewind, "SESSIONS", 4)
    random_bundle(tmp_path, task, seed=1)
    (model,) = load_models(load(["--models", str(tmp_path), "--max-batch", "16"]))
    costs = {name: rewind.measured(model, way) for name, way in rewind.WAYS.items()}
    assert costs["1, then 5 more, again and again"].steps <= 8 < costs["1, the first time"].steps
    assert costs["1, 64 times in a row"].steps < costs["64 at once"].steps
    assert all(cost.milliseconds > 0 for cost in costs.values())
