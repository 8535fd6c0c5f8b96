"""All that is measured of one network on one task's data."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from hiddenstate_models.gradients.gates import GateSaturation, gate_saturation
from hiddenstate_models.gradients.jacobians import Spectra, spectra
from hiddenstate_models.gradients.norms import Norms
from hiddenstate_models.gradients.survival import Survival, survivals
from hiddenstate_models.gradients.unrolling import Task, unroll

_ROOM = 32
"""Steps more than are looked back, so that there are several to look back from."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured; more gives narrower answers and takes longer in proportion."""

    steps: int = 300
    """How far back."""
    windows: int = 2
    """Stretches of the data, spread evenly over it."""
    lanes: int = 8
    """Documents or series side by side in each."""
    targets: int = 8
    """Steps of each stretch whose loss is followed back."""
    jacobians: int = 12
    """Steps of a sequence whose Jacobians are decomposed; 0: none."""


@dataclass(frozen=True)
class Measurement:
    """What was found; `verdict` says what it means."""

    whole: Survival
    """Of the gradient by all layers' state together."""
    layers: list[Survival]
    spectra: list[Spectra]
    """Of each layer; empty where no Jacobian was asked for."""
    gates: list[GateSaturation]
    norms: Norms
    """Through training; empty where there are no records of it."""


def measure(
    network: nn.Module,
    task: Task,
    effort: Effort,
    *,
    epoch: int = 0,
    norms: Norms | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Measurement:
    """Follows losses back through a network, in float64, without dropout.

    `epoch` is the one whose loss is taken, where a task's loss changes through training.

    Raises:
        DataError: no document is long enough to look back in, or the network has no stack of cells.
    """
    progress("running")
    room = effort.steps + _ROOM
    stretches = list(unroll(network, task, room, lanes=effort.lanes, windows=effort.windows))
    progress("following the gradient back")
    whole, layers = survivals(stretches, effort.steps, effort.targets, epoch)
    progress("decomposing the Jacobians of single steps")
    found = spectra(stretches[0], effort.jacobians) if effort.jacobians else []
    return Measurement(whole, layers, found, gate_saturation(stretches), norms or Norms())
