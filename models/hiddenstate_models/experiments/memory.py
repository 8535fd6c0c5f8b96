"""One to one against recurrent: what the memory of a next-value model is worth."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from hiddenstate_models.errors import DataError
from hiddenstate_models.experiments import plots, trained
from hiddenstate_models.experiments.experiment import Arm, Experiment, Group, Listener, Outcome
from hiddenstate_models.experiments.wording import figures, listed

_CELLS = {"none": "one to one", "rnn-tanh": "tanh RNN", "gru": "GRU", "lstm": "LSTM"}
_NONE = "none"


class Memory(Experiment):
    """The next value of series, from the last value alone or from all before."""

    name = "memory"
    title = "What memory is worth"
    question = (
        "The next value of a series is predicted from the value before it alone (one to one), or by networks that "
        "carry a state. How much better are those?"
    )
    score = "loss"
    unit = "surprise on the last tenth of each series, nats a value"
    needs = "CSV, Parquet or text files with series"

    def arms(self, data: Sequence[str], *, quick: bool) -> list[Arm]:
        """No memory, and three kinds of it.

        Raises:
            DataError: no file is named.
        """
        if not data:
            raise DataError("no series to learn from: name files with --data, such as deploy/demo/weather.csv")
        return [_arm(cell, list(data), quick=quick) for cell in _CELLS]

    def train(self, settings: Mapping[str, Any], seed: int, listener: Listener) -> Outcome:
        """See trained.train."""
        return trained.train(settings, seed, listener)

    def conclude(self, groups: Sequence[Group]) -> str:
        """The difference that each kind of memory makes."""
        losses = {group.arm.settings["options"]["cell"]: median(group.scores(self.score)) for group in groups}
        if _NONE not in losses:
            return "The arm without memory has no result yet."
        gains = [
            f"{figures(losses[_NONE] - loss)} nats a value with {_CELLS[cell]}"
            for cell, loss in losses.items()
            if cell != _NONE
        ]
        without = figures(losses[_NONE])
        return f"Without memory the median surprise is {without} nats a value; memory saves {listed(gains)}."

    def draw(self, groups: Sequence[Group]) -> Figure:
        """Validation surprise by update."""
        return plots.panels(groups, plots.View("loss", "surprise (nats a value)"))


def _arm(cell: str, files: list[str], *, quick: bool) -> Arm:
    epochs = 2 if quick else 12
    return Arm(
        name=cell,
        panel="next value",
        label=_CELLS[cell],
        settings={
            "task": "next-value",
            "data": files,
            "valid": [],
            "options": {"cell": cell, "hidden": "64", "session": 500 if quick else 4000},
            "training": {
                "epochs": epochs,
                "patience": epochs,
                "lanes": 32,
                "k1": 48,
                "k2": 48,
                "learning_rate": 2e-3,
                "warmup": 50,
            },
        },
    )
