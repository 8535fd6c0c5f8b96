"""The gradients of what is being trained, as `hiddenstate_models.gradients` measures them."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from hiddenstate_models.gradients.measurement import Effort, measure
from hiddenstate_models.gradients.norms import Norms
from hiddenstate_models.gradients.remedies import Subject
from hiddenstate_models.gradients.report import write_picture
from hiddenstate_models.gradients.verdict import Findings, judge
from hiddenstate_models.training.loop import Task
from hiddenstate_models.training.recipe import Told

LIGHT = Effort(steps=100, windows=1, lanes=4, targets=4, jacobians=0)
"""A second or a few for networks of usual size."""


def written(network: Mapping[str, Any]) -> int:
    """Steps that a network with this configuration writes after each one that it reads."""
    return int(network.get("horizon", 0))


def subject(
    name: str, network: Mapping[str, Any], told: Told[Any], horizon: int | None = None, *, trained: bool
) -> Subject:
    """A network by its configuration and what it was told; by default it is to look as far back as training does.

    What a decoder writes lies between the loss and the first step that was read.
    """
    ahead = written(network)
    units = " and ".join(str(size) for size in network["hidden_sizes"])
    state = "trained" if trained else "untrained"
    description = f"{state} {network['cell'].upper()} with {units} units, for {network['task']}"
    if ahead:
        description += f"; of the steps back the first {ahead} are those that it writes"
    settings = {**asdict(told.settings), **network, **asdict(told.training)}
    return Subject(name, description, network["cell"], horizon or told.training.k2 + ahead, settings)


def save_gradients(
    folder: Path, network: nn.Module, task: Task, configuration: Mapping[str, Any], told: Told[Any]
) -> Findings:
    """Measures lightly, and writes gradients.png and gradients.json beside the run's learning curve.

    Raises:
        DataError: no document is long enough to look back in.
    """
    effort = replace(LIGHT, steps=max(LIGHT.steps, told.training.k2 + written(configuration)))
    measured = measure(network, task, effort, epoch=told.training.epochs, norms=Norms.load(folder))
    findings = judge(subject(folder.name, configuration, told, trained=True), measured)
    write_picture(findings, folder)
    return findings
