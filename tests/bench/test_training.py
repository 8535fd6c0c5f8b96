"""A short run of the comparison of training loops. Nothing here depends on how fast anything is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from bench.plain_training import Hyperparameters, PlainLoop, PlainModel
from bench.training import as_network, as_plain
from tests.bench.test_bench import number

from hiddenstate_models.networks.words import NextWordConfig, NextWordNetwork

ROOT = Path(__file__).parents[2]
TINY = ["--part", "0.02", "--hidden", "8,8", "--lanes", "4", "--words", "40", "--samples", "8", "--turn", "5"]
TINY += ["--epochs", "3", "--full-epochs", "1"]


def test_both_sides_are_the_same_network() -> None:
    config = NextWordConfig(vocabulary_size=30, hidden_sizes=(6, 6), embedding_size=6)
    network, plain, back = NextWordNetwork(config), PlainModel(config), NextWordNetwork(config)
    torch.nn.init.normal_(network.head.bias)
    plain.load_state_dict(as_plain(network))
    tokens = torch.randint(0, 30, (7, 3))
    with torch.no_grad():
        outputs, _ = network(tokens, network.initial_state(3))
        expected = network.head(outputs).log_softmax(-1).flatten(0, 1)
        torch.testing.assert_close(plain(tokens, None)[0], expected)
    back.load_state_dict(as_network(plain, back))
    for name, weight in network.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name


def test_the_plain_loop_learns() -> None:
    torch.manual_seed(0)
    model = PlainModel(NextWordConfig(vocabulary_size=5, hidden_sizes=(8,), embedding_size=8))
    text = np.tile(np.arange(5, dtype=np.int32), 400)
    loop = PlainLoop(model, text, Hyperparameters(2, 2, 10, lambda _update, _updates: 0.02, 0.25))
    assert loop.updates == 2 * 100
    assert loop.train(60) == 60 * 2 * 10
    assert sum(loop.train(60) for _ in range(3)) == (2 * 999 - 60 * 10) * 2
    with torch.no_grad():
        probabilities, _ = model(torch.arange(5).repeat(2).unsqueeze(1), None)
    assert probabilities[-1].exp()[0] > 0.9


def test_a_run_prints_both_sides() -> None:
    command = [sys.executable, "-m", "bench.training", *TINY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    header, _, plain, ours = rows
    assert (plain[1], ours[1]) == ("plain", "hiddenstate")
    for row in (plain, ours):
        found = dict(zip(header[2:], row[2:], strict=True))
        assert number(found["tokens/s"]) > 0
        assert number(found["tokens learnt from"]) > 1000
        assert 1 < number(found["perplexity"]) < 40
