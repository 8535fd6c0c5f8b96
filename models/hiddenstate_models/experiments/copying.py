"""The copy-memory problem: which cells say ten symbols again after hundreds of steps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from hiddenstate_models.data.synthetic import COPIED, SYMBOLS
from hiddenstate_models.experiments import plots, synthetic
from hiddenstate_models.experiments.experiment import Arm, Experiment, Group, Listener, Outcome
from hiddenstate_models.experiments.wording import spread

_ARMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "lstm-chrono": ("LSTM, chrono", {"cell": "lstm", "initialisation": "chrono"}),
    "lstm": ("LSTM", {"cell": "lstm", "initialisation": "orthogonal"}),
    "gru": ("GRU", {"cell": "gru", "initialisation": "orthogonal"}),
    "tanh-orthogonal": ("tanh RNN, orthogonal", {"cell": "rnn-tanh", "initialisation": "orthogonal"}),
    "tanh": ("tanh RNN", {"cell": "rnn-tanh", "initialisation": "uniform"}),
}

_DELAYS: Mapping[int, Sequence[str]] = {200: tuple(_ARMS), 500: ("lstm-chrono",)}
"""Which arms run at which delay: at the longer one, an hour a run, the one with a published result."""

_PUBLISHED: Mapping[tuple[str, int], str] = {
    ("lstm-chrono", 500): "solved (Tallec & Ollivier, 2018)",
}


class Copying(Experiment):
    """Cells and remedies at two delays."""

    name = "copy"
    title = "Copy memory"
    question = (
        "Ten symbols, then T blanks, then the ten symbols are to be said again. Which cells, with which remedies, keep "
        "them? Without memory the loss is 10 ln 8 / (T + 20) nats a step."
    )
    score = "loss"
    unit = "nats a step on 2,000 new sequences"

    def arms(self, data: Sequence[str], *, quick: bool) -> list[Arm]:  # noqa: ARG002
        """Every cell and remedy at every delay."""
        delays = {10: tuple(_ARMS)} if quick else _DELAYS
        return [_arm(name, delay, quick=quick) for delay, names in delays.items() for name in names]

    def train(self, settings: Mapping[str, Any], seed: int, listener: Listener) -> Outcome:
        """See synthetic.train."""
        return synthetic.train(settings, seed, listener)

    def conclude(self, groups: Sequence[Group]) -> str:
        """How far each arm came below the memoryless loss, and how much it recalls."""
        sentences = []
        for panel in sorted({group.arm.panel for group in groups}, key=_delay):
            here = [group for group in groups if group.arm.panel == panel]
            baseline = memoryless(_delay(panel))
            parts = []
            for group in here:
                share = [score / baseline for score in group.scores(self.score)]
                recalled = [100 * score for score in group.scores("recalled")]
                parts.append(f"{group.arm.label} {spread(share)} times, {spread(recalled)} % of the symbols right")
            sentences.append(f"{panel}, loss beside the memoryless one ({baseline:.4f} nats): {'; '.join(parts)}.")
        return " ".join(sentences)

    def draw(self, groups: Sequence[Group]) -> Figure:
        """Validation loss by update, a panel a delay."""
        levels = {group.arm.panel: {"without memory": memoryless(_delay(group.arm.panel))} for group in groups}
        return plots.panels(groups, plots.View("loss", "nats a step", log=True, levels=levels))


def memoryless(delay: int) -> float:
    """Mean loss of blanks and then any symbol, in nats a step."""
    return COPIED * math.log(SYMBOLS) / (delay + 2 * COPIED)


def _delay(panel: str) -> int:
    return int(panel.removeprefix("T = "))


def _arm(name: str, delay: int, *, quick: bool) -> Arm:
    label, cells = _ARMS[name]
    chrono = {"t_max": delay * 3 // 2} if cells["initialisation"] == "chrono" else {}
    return Arm(
        name=f"T{delay}-{name}",
        panel=f"T = {delay}",
        label=label,
        published=_PUBLISHED.get((name, delay), "-"),
        settings={
            "problem": "copy",
            "length": delay,
            "cells": {**cells, **chrono, "hidden_sizes": [32 if quick else 128]},
            "training": {
                "epochs": 5 if quick else 150,
                "lanes": 32,
                "learning_rate": 1e-2,
                "clip_norm": 1.0,
                "schedule": "step",
                "decay": 0.93,
                "decay_after": 100,
            },
            "solved": memoryless(delay) / 100,
            "stuck": {"updates": 6000, "loss": 0.95 * memoryless(delay)},
        },
    )
