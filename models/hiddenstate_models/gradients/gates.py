"""How often gates are shut or wide open, where they pass no gradient to what steers them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hiddenstate_models.gradients.unrolling import Unrolled

SHUT, OPEN = 0.05, 0.95


@dataclass(frozen=True)
class GateSaturation:
    """One gate of one layer, over all its units and many steps and lanes."""

    layer: int
    """The first is 1."""
    name: str
    shut: float
    """Share of values below `SHUT`."""
    open: float
    """Share of values above `OPEN`."""
    mean: float


def gate_saturation(stretches: Iterable[Unrolled]) -> list[GateSaturation]:
    """Of every gate of every layer; empty for cells without gates."""
    values: dict[tuple[int, str], list[Tensor]] = {}
    for stretch in stretches:
        for i, steps in enumerate(stretch.layers, 1):
            with torch.no_grad():
                gates = steps.layer.gate_values(torch.cat(steps.inputs), torch.cat(steps.before))
            for name, opened in gates.items():
                values.setdefault((i, name), []).append(opened)
    return [_saturation(layer, name, torch.cat(parts)) for (layer, name), parts in values.items()]


def _saturation(layer: int, name: str, opened: Tensor) -> GateSaturation:
    shut, wide = (opened < SHUT).double().mean(), (opened > OPEN).double().mean()
    return GateSaturation(layer, name, float(shut), float(wide), float(opened.mean()))
