"""A network over a stretch of its data, unrolled so that every state on the way can be asked for its gradient."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hiddenstate_models.cells import Layer, LayerSteps, RecurrentStack
from hiddenstate_models.data.lanes import Chunk, Source
from hiddenstate_models.errors import DataError


class Task(Protocol):
    """What a measurement needs of a task, as of the training loop."""

    @property
    def lanes(self) -> Source:
        """The data."""
        ...

    def loss(self, network: nn.Module, outputs: Any, targets: Tensor, epoch: int, /) -> Tensor:
        """Summed loss of targets [T, B, ...], padded ones left out, given the network's outputs, [T, B, ...] each."""
        ...


@dataclass(frozen=True)
class UnrolledLayer:
    """One layer's T steps of B lanes."""

    layer: Layer
    inputs: list[Tensor]
    """T of [B, input]"""
    before: list[Tensor]
    """T of [B, row]: the state that each step starts from."""
    after: list[Tensor]
    """T of [B, row]: the state that each step makes, and all that later steps and the output know of it."""


@dataclass(frozen=True)
class Unrolled:
    """T steps of B lanes in float64, as they would be served: without dropout."""

    layers: list[UnrolledLayer]
    known: Tensor
    """[T, B]: where there is a target."""
    ages: Tensor
    """[T, B]: steps since the first one of the document."""
    _network: nn.Module
    _task: Task
    _outputs: Sequence[tuple[Any, Tensor, list[int]]]
    """Of each chunk, outputs, targets, and the steps they belong to."""

    def loss(self, time: int, epoch: int) -> "Loss":
        """The loss of step `time`, which has targets, alone; summed over lanes, which do not see each other.

        Of what a decoder writes after that step it is the loss of the last one it writes.
        """
        outputs, targets, places = next(chunk for chunk in self._outputs if time in chunk[2])
        place = places.index(time)
        only = torch.full_like(targets, self._task.lanes.padding)
        decoder = decoder_of(self._network)
        if decoder is None:
            only[place] = targets[place]
            return Loss(self._task.loss(self._network, outputs, only, epoch), [], place)
        only[place, :, -1] = targets[place, :, -1]
        with decoder.recording() as steps:
            loss = self._task.loss(self._network, outputs, only, epoch)
        depth = len(decoder.row_sizes)
        return Loss(loss, [[step.rows[1] for step in steps[layer::depth]] for layer in range(depth)], place)


class Loss(NamedTuple):
    """Of one step, and the states on the way to it that only its own output has."""

    value: Tensor
    written: list[list[Tensor]]
    """By layer and by step that a decoder writes, [S * B, row]: the state that the step makes, for S steps at once that
    it writes after; none where there is no decoder."""
    place: int
    """Which of the S steps the loss is of."""


def decoder_of(network: nn.Module) -> RecurrentStack | None:
    """The stack that writes several steps from the state of the one that reads; None: there is none."""
    decoder = getattr(network, "decoder", None)
    return decoder if isinstance(decoder, RecurrentStack) else None


def unroll(network: nn.Module, task: Task, steps: int, *, lanes: int, windows: int) -> Iterator[Unrolled]:
    """Stretches of about `steps` steps of the first `lanes` lanes, spread evenly over the task's data.

    Each starts from a fresh state, as a document does. The stack that is unrolled is the network's `cells`.

    Raises:
        DataError: the network has no such stack, or one without memory.
    """
    network = copy.deepcopy(network).cpu().double().eval().requires_grad_(False)
    stack = getattr(network, "cells", None)
    if not isinstance(stack, RecurrentStack):
        raise DataError(
            "gradients are followed through the stack of cells that reads a sequence; this network has none"
        )
    if not stack.state_size:
        raise DataError("a network without memory has no gradients that flow back through time")
    total = task.lanes.chunks_per_epoch(0)
    first = next(task.lanes.epoch(0))
    length = min(-(-steps // len(first.inputs)), total)
    starts = np.linspace(0, total - length, windows).round().astype(int)
    for start in dict.fromkeys(starts.tolist()):
        chunks = [chunk for chunk, _ in zip(task.lanes.epoch(0, start), range(length), strict=False)]
        yield _unroll(network, stack, task, [_some_lanes(chunk, lanes) for chunk in chunks])


def _unroll(network: nn.Module, stack: RecurrentStack, task: Task, chunks: Sequence[Chunk]) -> Unrolled:
    state: Tensor = network.initial_state(chunks[0].inputs.shape[1])  # type: ignore[operator]
    state.requires_grad_()
    age = torch.zeros(len(state), dtype=torch.int64)
    outputs: list[tuple[Any, Tensor, list[int]]] = []
    known: list[Tensor] = []
    ages: list[Tensor] = []
    done = 0
    with stack.recording() as steps:
        for chunk in chunks:
            inputs, targets, starts = map(torch.from_numpy, chunk[:3])
            places = list(range(len(inputs))) if chunk.places is None else chunk.places.tolist()
            asked = () if chunk.places is None else (places,)
            age = age.masked_fill(starts, 0)
            of_chunk, state = network(inputs, state.masked_fill(starts.unsqueeze(1), 0), *asked)
            outputs.append((of_chunk, targets, [done + place for place in places]))
            there = torch.zeros(inputs.shape[:2], dtype=torch.bool)
            last = targets if decoder_of(network) is None else targets[:, :, -1]
            there[places] = _known(last, task.lanes.padding)
            known.append(there)
            ages.append(age + torch.arange(len(inputs)).unsqueeze(1))
            age = age + len(inputs)
            done += len(inputs)
    depth = len(stack.row_sizes)
    layers = [_joined(steps[layer::depth]) for layer in range(depth)]
    return Unrolled(layers, torch.cat(known), torch.cat(ages), network, task, outputs)


def _joined(chunks: Sequence[LayerSteps]) -> UnrolledLayer:
    return UnrolledLayer(
        chunks[0].layer,
        [x for chunk in chunks for x in chunk.inputs],
        [row for chunk in chunks for row in chunk.rows[:-1]],
        [row for chunk in chunks for row in chunk.rows[1:]],
    )


def _known(targets: Tensor, padding: float) -> Tensor:
    there = ~targets.isnan() if np.isnan(padding) else targets != padding
    return there.flatten(2).any(2) if there.ndim > 2 else there


def _some_lanes(chunk: Chunk, lanes: int) -> Chunk:
    return Chunk(chunk.inputs[:, :lanes], chunk.targets[:, :lanes], chunk.starts[:lanes], chunk.places)
