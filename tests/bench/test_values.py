"""A small run of `bench.values`: its barest graph is the model's GRU and head."""

from pathlib import Path

import numpy as np
import torch
from bench import values
from safetensors.numpy import load_file

from hiddenstate_models.bundle import WEIGHTS_FILE
from hiddenstate_models.export import random_bundle
from hiddenstate_server.settings import load
from hiddenstate_server.versions.repository import load_models


def test_the_barest_graph_is_the_cells_and_the_head(tmp_path: Path) -> None:
    weights = load_file(random_bundle(tmp_path, "next-value").folder / WEIGHTS_FILE)
    random = np.random.default_rng(0)
    x, h = (random.normal(size=(5, size)).astype(np.float32) for size in (7, 8))
    y, after = values.session_of(values.barest_graph(weights)).run(None, {"x": x, "h": h})
    cell = torch.nn.GRUCell(7, 8)
    cell.load_state_dict(
        {
            name.rsplit(".", 1)[1].removesuffix("_l0"): torch.tensor(array)
            for name, array in weights.items()
            if "cells" in name
        }
    )
    with torch.no_grad():
        expected = cell(torch.tensor(x), torch.tensor(h)).numpy()
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y, expected @ weights["head.weight"].T + weights["head.bias"], rtol=1e-5, atol=1e-6)


def test_every_way_is_measured(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path, "next-value")
    (model,) = load_models(load(["--models", str(tmp_path), "--max-batch", "16"]))
    found = values.costs(model, load_file(bundle.folder / WEIGHTS_FILE), 3, rounds=2)
    assert list(found) == ["barest graph", "whole graph", "engine"]
    assert 0 < found["barest graph"] < found["engine"] < float("inf")
