"""What a task brings to training. Everything else, from flags to checkpoints, is the same for all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from hiddenstate_models.training.loop import Task
from hiddenstate_models.training.options import TrainingOptions

Settings = TypeVar("Settings")
"""A task's own options: a frozen dataclass whose fields are made by `option`."""


@dataclass(frozen=True)
class Told(Generic[Settings]):
    """All that a run is told; the run folder's config.toml says the same."""

    data: list[str]
    """What to learn from, as it was typed; see `data.sources`."""
    valid: list[str]
    """What to validate on; without it the task holds a part of the data out."""
    settings: Settings
    training: TrainingOptions


@dataclass(frozen=True)
class Prepared:
    """A run that can start: data read, network built."""

    network: nn.Module
    config: Mapping[str, Any]
    """The network's configuration as JSON types, from which evaluation and export build it again."""
    task: Task
    facts: Mapping[str, object]
    """What a person wants to know of data and network before training starts."""
    read: Mapping[str, Any] = field(default_factory=dict)
    """What run.json says of the data besides files and settings; JSON types."""
    files: Mapping[str, str] = field(default_factory=dict)
    """More text files of the run's folder, by name."""

    @property
    def parameters(self) -> int:
        """How many numbers are learnt."""
        return sum(parameter.numel() for parameter in self.network.parameters())


@dataclass(frozen=True)
class Recipe(Generic[Settings]):
    """A task that can be trained: `hiddenstate-models train TASK` is made from it."""

    task: str
    settings: type[Settings]
    group: str
    """What the task's settings are called: their part of --help and of config.toml."""
    unit: str
    """What is counted in a second."""
    prepare: Callable[[Told[Settings], Path | None], Prepared]
    """Reads the data and builds the network, of which only the latter draws from torch's random numbers. The path is
    the folder of the run that is resumed, whose files are to be used instead of made anew."""
    help: str
    """One line on what is trained, a blank line, an example."""
    reads: str
    """What --data takes."""
    holds_out: str
    """What is validated on without --valid."""
