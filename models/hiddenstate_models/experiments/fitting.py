"""An ordinary training run of which the curves are recorded and nothing else is kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from lightning_fabric import Fabric
from torch import nn

from hiddenstate_models.errors import DivergenceError
from hiddenstate_models.experiments.experiment import Curve, Listener, Outcome
from hiddenstate_models.training.denormals import denormals_as_zero
from hiddenstate_models.training.loop import Progress, Task, Trainer, Update
from hiddenstate_models.training.options import TrainingOptions

_POINTS = 100
"""Points that a curve of updates is reduced to."""
_HEARD_EVERY = 20


class Recorder:
    """Watches a training run: losses, gradients' norms before clipping, validation scores."""

    def __init__(self, total_updates: int, listener: Listener) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.validation: dict[str, Curve] = {}
        self._total = total_updates
        self._listener = listener

    def updated(self, update: Update, _progress: Progress) -> None:
        """Keeps an update's figures."""
        self.losses.append(update.loss)
        self.norms.append(update.gradient_norm)
        if update.number % _HEARD_EVERY == 0:
            recent = float(np.mean(self.losses[-100:]))
            self._listener(update.number / self._total, f"update {update.number:,}, loss {recent:.4g}")

    def validated(self, progress: Progress) -> None:
        """Keeps an epoch's scores."""
        for name, value in progress.history[-1].items():
            if name not in ("epoch", "training_loss"):
                self.validation.setdefault(name, []).append((progress.update, _rounded(value)))

    def curves(self) -> dict[str, Curve]:
        """Means of the loss and largest norms of the gradient over stretches of updates; validation as it was."""
        return {
            "training loss": _reduced(self.losses, np.mean),
            "gradient norm": _reduced(self.norms, np.max),
            **self.validation,
        }


def fit(
    network: nn.Module,
    task: Task,
    options: TrainingOptions,
    listener: Listener,
    *,
    ended: Callable[[Curve], Literal["solved", "stuck"] | None] = lambda _: None,
    score: Callable[[nn.Module], Mapping[str, float]] | None = None,
) -> Outcome:
    """Trains until the epochs are done, the validation losses so far have `ended` it, or the run diverges.

    `score` has the last word on a network that did not diverge; without it the best epoch's scores count.
    """
    fabric = Fabric(accelerator=options.accelerator, devices=1, precision=options.precision)
    recorder = Recorder(options.epochs * task.lanes.chunks_per_epoch(0), listener)
    trainer = Trainer(network, task, options, fabric=fabric, watchers=(recorder,))

    def how() -> Literal["solved", "stuck"] | None:
        return ended(recorder.validation.get("loss", []))

    try:
        trainer.fit(on_checkpoint=lambda _: None, on_best=lambda _: None, should_stop=lambda: how() is not None)
    except DivergenceError:
        return Outcome(ended="diverged", updates=trainer.progress.update, scores={}, curves=recorder.curves())
    network.eval()
    with denormals_as_zero():
        scores = dict(score(network)) if score else _best(trainer.progress)
    last, _ = recorder.validation["loss"][-1]
    return Outcome(ended=how() or "finished", updates=int(last), scores=scores, curves=recorder.curves())


def _best(progress: Progress) -> dict[str, float]:
    """The scores of the best epoch, and the last one's loss."""
    best = min(progress.history, key=lambda entry: entry["loss"] if math.isfinite(entry["loss"]) else math.inf)
    return {**best, "last loss": progress.history[-1]["loss"]}


def _reduced(values: Sequence[float], reduce: Callable[[Sequence[float]], float]) -> Curve:
    """Points at the ends of stretches of equal length."""
    length = max(1, math.ceil(len(values) / _POINTS))
    return [
        (min(start + length, len(values)), _rounded(reduce(values[start : start + length])))
        for start in range(0, len(values), length)
    ]


def _rounded(value: float) -> float:
    """Five significant figures: more than a picture shows, in a third of the space."""
    return float(f"{value:.5g}")
