"""The adding problem: which cells, with which remedies, carry a number over hundreds of steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from hiddenstate_models.experiments import plots, synthetic
from hiddenstate_models.experiments.experiment import Arm, Experiment, Group, Listener, Outcome
from hiddenstate_models.experiments.wording import figures, listed

CONSTANT = 1 / 6
"""Squared error of always answering 1."""
_SOLVED, _TARGET = 1e-3, 5e-4
_STUCK = {"updates": 6000, "loss": 0.8 * CONSTANT}


@dataclass(frozen=True)
class _Remedy:
    label: str
    cells: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


_ARMS: Mapping[str, _Remedy] = {
    "lstm-chrono": _Remedy("LSTM, chrono", {"cell": "lstm", "initialisation": "chrono"}),
    "gru": _Remedy("GRU", {"cell": "gru", "initialisation": "orthogonal"}),
    "irnn": _Remedy(
        "ReLU RNN, identity",
        {"cell": "rnn-relu", "initialisation": "identity", "hidden_sizes": [32]},
        # A long step at the beginning lets recurrent weights grow past 1, and what they carry explode.
        {"learning_rate": 8e-4, "warmup": 4000, "schedule": "step", "decay": 0.75, "decay_after": 65},
        {"input_deviation": 0.03, "solved": 1e-3},
    ),
    "tanh": _Remedy("tanh RNN", {"cell": "rnn-tanh", "initialisation": "uniform"}),
    "lstm": _Remedy("LSTM", {"cell": "lstm", "initialisation": "orthogonal"}),
    "tanh-orthogonal": _Remedy("tanh RNN, orthogonal", {"cell": "rnn-tanh", "initialisation": "orthogonal"}),
    "tanh-regulariser": _Remedy(
        "tanh RNN, orthogonal, regulariser",
        {"cell": "rnn-tanh", "initialisation": "orthogonal"},
        {"gradient_regulariser": 1.0},
    ),
    "gru-chrono": _Remedy("GRU, chrono", {"cell": "gru", "initialisation": "chrono"}),
}

_COSTLY = "tanh-regulariser"  # its second backward pass takes several times as long
_LENGTHS: Mapping[int, Sequence[str]] = {
    400: [name for name in _ARMS if name != _COSTLY],
    200: [name for name in _ARMS if name != _COSTLY],
    100: list(_ARMS),
    600: ["lstm-chrono", "gru", "tanh", "lstm"],
}
"""Which arms run at which length: at the longest the three with a published figure, and the LSTM's remedy."""

_PUBLISHED: Mapping[tuple[str, int], str] = {
    ("irnn", 200): "solved (Le et al., 2015)",
    ("gru", 600): "5.3e-5 (Bai et al., 2018)",
    ("lstm", 600): "0.164 (Bai et al., 2018)",
    ("tanh", 600): "0.177 (Bai et al., 2018)",
}


class Adding(Experiment):
    """Cells and remedies over rising lengths."""

    name = "adding"
    title = "The adding problem"
    question = (
        "Two of T values are marked; after the last one the network must say their sum. Which cells, with which "
        "remedies, carry the first value that far? Always answering 1 has a squared error of 0.167."
    )
    score = "loss"
    unit = "squared error on 2,000 new sequences"

    def arms(self, data: Sequence[str], *, quick: bool) -> list[Arm]:  # noqa: ARG002
        """Cells and remedies, by length."""
        lengths = {30: list(_ARMS)} if quick else _LENGTHS
        return [_arm(name, length, quick=quick) for length, names in lengths.items() for name in names]

    def train(self, settings: Mapping[str, Any], seed: int, listener: Listener) -> Outcome:
        """See synthetic.train."""
        return synthetic.train(settings, seed, listener)

    def conclude(self, groups: Sequence[Group]) -> str:
        """Who solved each length with every seed, who sometimes, who never."""
        sentences = []
        for panel in sorted({group.arm.panel for group in groups}, key=_length):
            here = [group for group in groups if group.arm.panel == panel]
            always = [group.arm.label for group in here if group.ended("solved") == len(group.results)]
            never = [group for group in here if not group.ended("solved")]
            some = [group.arm.label for group in here if 0 < group.ended("solved") < len(group.results)]
            parts = []
            if always:
                parts.append(f"solved with every seed by {listed(always)}")
            if some:
                parts.append(f"with some by {listed(some)}")
            if never:
                best = min(min(group.scores(self.score), default=float("inf")) for group in never)
                names = listed([group.arm.label for group in never])
                parts.append(f"never by {names}, none of which came below {figures(best)}")
            sentences.append(f"{panel}: {'; '.join(parts)}.")
        return " ".join(sentences)

    def draw(self, groups: Sequence[Group]) -> Figure:
        """Validation error by update, a panel a length."""
        ordered = sorted(groups, key=lambda group: _length(group.arm.panel))
        panels = {group.arm.panel for group in groups}
        levels = {panel: {"always answering 1": CONSTANT, "solved": _SOLVED} for panel in panels}
        return plots.panels(ordered, plots.View("loss", "squared error", log=True, levels=levels))


def _length(panel: str) -> int:
    return int(panel.removeprefix("T = "))


def _arm(name: str, length: int, *, quick: bool) -> Arm:
    remedy = _ARMS[name]
    chrono = {"t_max": length} if remedy.cells["initialisation"] == "chrono" else {}
    training = {"epochs": 80, "lanes": 20, "learning_rate": 2e-3, "clip_norm": 1.0, **remedy.training}
    return Arm(
        name=f"T{length}-{name}",
        panel=f"T = {length}",
        label=remedy.label,
        published=_PUBLISHED.get((name, length), "-"),
        settings={
            "problem": "adding",
            "length": length,
            "cells": {"hidden_sizes": [32 if quick else 64], **remedy.cells, **chrono},
            "training": {**training, "epochs": 8} if quick else training,
            "solved": _TARGET,
            "stuck": _STUCK,
            **remedy.settings,
            **({"solved": 1e-2} if quick else {}),
        },
    )
