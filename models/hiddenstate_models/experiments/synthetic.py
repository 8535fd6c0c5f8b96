"""Synthetic problems as tasks of the ordinary training loop, with data that is fresh at every update."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.cells import CellOptions, RecurrentStack
from hiddenstate_models.data.lanes import Chunk
from hiddenstate_models.data.synthetic import SYMBOLS, adding_problem, copy_memory
from hiddenstate_models.experiments.experiment import Curve, Listener, Outcome
from hiddenstate_models.experiments.fitting import fit
from hiddenstate_models.training.options import TrainingOptions

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Batch size, randomness -> inputs [T, B, ...], targets [T, B]."""

UPDATES_AN_EPOCH = 100
"""Updates between two validations."""
_VALIDATED, _TESTED = 400, 2000
_VALIDATION_SEED, _TEST_SEED = -1, -2


class SequenceNetwork(nn.Module):
    """Inputs, one-hot where they are symbols -> stack of cells -> a linear output at every step."""

    def __init__(self, inputs: int, outputs: int, options: CellOptions) -> None:
        super().__init__()
        self._inputs = inputs
        self.cells = RecurrentStack(inputs, options)
        self.head = nn.Linear(self.cells.output_size, outputs)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros [batch, state_size]."""
        return self.cells.initial_state(batch)

    def forward(self, sequence: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """sequence [T, B, inputs], or symbols [T, B]; state [B, state_size] -> outputs [T, B, outputs], state."""
        if not sequence.is_floating_point():
            sequence = F.one_hot(sequence, self._inputs).float()
        outputs, state = self.cells(sequence, state)
        return self.head(outputs), state


class FreshLanes:
    """Whole sequences, one a lane, drawn anew for every update by (seed, epoch, position)."""

    padding = math.nan

    def __init__(self, draw: Draw, lanes: int, seed: int) -> None:
        self._draw = draw
        self._lanes = lanes
        self._seed = seed

    def chunks_per_epoch(self, _epoch: int) -> int:
        """Updates between two validations."""
        return UPDATES_AN_EPOCH

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Chunk]:
        """As of Lanes."""
        for position in range(skip, UPDATES_AN_EPOCH):
            inputs, targets = self._draw(self._lanes, generator_of(self._seed, epoch, position))
            yield Chunk(inputs.numpy(), targets.numpy(), np.ones(self._lanes, bool))


def generator_of(*seeds: int) -> torch.Generator:
    """Randomness that depends on all of the numbers."""
    seed = np.random.SeedSequence([number % 2**32 for number in seeds]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) % 2**63)


class SyntheticTask:
    """Learns from sequences that are fresh at every update, and is validated on the same ones after each epoch."""

    def __init__(self, problem: "Problem", options: TrainingOptions) -> None:
        self.lanes = FreshLanes(problem.draw, options.lanes, options.seed)
        self._problem = problem
        self._validation = problem.draw(_VALIDATED, generator_of(_VALIDATION_SEED))

    def loss(self, _network: nn.Module, outputs: Tensor, targets: Tensor, _epoch: int) -> Tensor:
        """Summed loss of the targets [T, B] that are there."""
        return self._problem.loss(outputs, targets)

    def count(self, chunk: Chunk) -> int:
        """Targets that are there."""
        return int((~np.isnan(chunk.targets)).sum())

    def details(self, _loss: float) -> dict[str, float]:
        """Nothing but the loss."""
        return {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean loss on sequences that never change."""
        return self._problem.scores(cast(SequenceNetwork, network), *self._validation)


@dataclass(frozen=True)
class Problem:
    """A synthetic problem of one length."""

    inputs: int
    outputs: int
    draw: Draw
    loss: Callable[[Tensor, Tensor], Tensor]
    """Outputs [T, B, outputs], targets [T, B] -> summed loss."""

    @torch.no_grad()
    def scores(self, network: SequenceNetwork, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Mean loss; of symbols also the share of those to be recalled that were."""
        device = next(network.parameters()).device
        loss, right = 0.0, 0
        for some, expected in zip(inputs.split(100, dim=1), targets.split(100, dim=1), strict=True):
            outputs, _ = network(some.to(device), torch.zeros_like(network.initial_state(some.shape[1])))
            loss += float(self.loss(outputs, expected.to(device)))
            right += int(((outputs.argmax(2).cpu() == expected) & (expected > 0)).sum())
        scores = {"loss": loss / int((~targets.isnan()).sum())}
        return scores if self.outputs == 1 else scores | {"recalled": right / int((targets > 0).sum())}


def _adding(length: int) -> Problem:
    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, sums = adding_problem(length, batch, generator)
        targets = torch.full((length, batch), torch.nan)
        targets[-1] = sums
        return inputs, targets

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs[-1, :, 0], targets[-1], reduction="sum")

    return Problem(2, 1, draw, loss)


def _copy(delay: int) -> Problem:
    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return copy_memory(delay, batch, generator)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum")

    return Problem(SYMBOLS + 2, SYMBOLS + 1, draw, loss)


PROBLEMS: Mapping[str, Callable[[int], Problem]] = {"adding": _adding, "copy": _copy}


def train(settings: Mapping[str, Any], seed: int, listener: Listener) -> Outcome:
    """One run: `problem`, `length`, `cells` (CellOptions), `training` (TrainingOptions), `solved`, `stuck`.

    It is solved when the validation loss was below `solved` twice running, and stuck when that loss has not once been
    below stuck["loss"] in the first stuck["updates"]. With `input_deviation`, input weights start normal with that
    deviation, whatever the initialisation says.
    """
    problem = PROBLEMS[settings["problem"]](settings["length"])
    length = settings["length"] + (0 if problem.outputs == 1 else 20)
    whole = {"k1": length, "k2": length, "patience": settings["training"]["epochs"], "warmup": 0}
    options = TrainingOptions(**{"schedule": "constant", **whole, **settings["training"]}, seed=seed)
    torch.manual_seed(seed)
    network = SequenceNetwork(problem.inputs, problem.outputs, CellOptions.from_dict(settings["cells"]))

    if "input_deviation" in settings:
        nn.init.normal_(network.cells.layers[0].get_parameter("weight_ih_l0"), std=settings["input_deviation"])

    def ended(curve: Curve) -> Literal["solved", "stuck"] | None:
        losses = [loss for _, loss in curve]
        if len(losses) >= 2 and max(losses[-2:]) < settings["solved"]:
            return "solved"
        updates = len(losses) * UPDATES_AN_EPOCH
        return "stuck" if updates >= settings["stuck"]["updates"] and min(losses) >= settings["stuck"]["loss"] else None

    def score(network: nn.Module) -> dict[str, float]:
        return problem.scores(cast(SequenceNetwork, network), *problem.draw(_TESTED, generator_of(_TEST_SEED)))

    return fit(network, SyntheticTask(problem, options), options, listener, ended=ended, score=score)
