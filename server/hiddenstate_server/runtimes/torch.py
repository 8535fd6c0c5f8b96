"""PyTorch: the reference on CPU; on CUDA one captured graph per bucket of batch sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiddenstate_models.bundle import Bundle, LabelNetwork, NoteNetwork, SeriesShapes, WordNetwork
from hiddenstate_models.reference import ReferenceWordStep, reference_step
from hiddenstate_server.runtimes import (
    FloatArray,
    InputArray,
    Outputs,
    ProbabilityOutputs,
    ValueOutputs,
    WordOutputs,
    each_column,
)

_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def cuda_available() -> bool:
    """Whether there is a CUDA device to compute on."""
    return torch.cuda.is_available()


class TorchRuntime:
    """Steps a bundle's reference module; `device` is cpu or cuda."""

    makes_runs = False

    def __init__(self, bundle: Bundle, *, top_k: int, device: str) -> None:
        self.state_size = bundle.config.state_size
        self.description = f"torch {device} fp32"
        self._device = device
        self._module = reference_step(bundle).to(device)
        self._text = bundle.config.text
        network = bundle.network
        self._columns = network.columns if isinstance(network, SeriesShapes) else 0
        self._notes = network.notes if isinstance(network, NoteNetwork) else 0
        self._labels = isinstance(network, LabelNetwork)
        self._arguments = (min(top_k, len(bundle.vocabulary)),) if isinstance(network, WordNetwork) else ()
        self._graphs = {} if device == "cpu" else {size: self._capture(size) for size in _BUCKETS}

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        """Tokens int64 [n], values float64 [n, columns] or frames float64 [n, notes].

        Any n on cpu, in parts of the largest bucket on cuda.
        """
        if not self._graphs:
            return self._named(self._compute(torch.from_numpy(inputs), torch.from_numpy(states)))
        if len(inputs) <= _BUCKETS[-1]:
            return self._replay(inputs, states)
        half = len(inputs) // 2
        (first, first_states), (second, second_states) = (
            self.step(inputs[:half], states[:half]),
            self.step(inputs[half:], states[half:]),
        )
        halves: Any = zip(first, second, strict=True)
        joined: list[Any] = [np.concatenate(pair) for pair in halves]
        return type(first)(*joined), np.concatenate([first_states, second_states])

    def initial(self) -> tuple[Outputs, FloatArray]:
        """What a new session starts with, as the ONNX runtimes have it."""
        state = np.zeros((1, self.state_size), np.float32)
        if self._text is not None or self._notes:
            first = np.zeros((1, self._notes)) if self._text is None else np.array([self._text.end_token])
            outputs, state = self.step(first, state)
            return outputs._replace(surprises=np.full(1, np.nan, np.float32)), state
        outputs, _ = self.step(np.zeros((1, self._columns)), state)
        return each_column(outputs, lambda column: np.full_like(column, np.nan)), state

    @torch.inference_mode()
    def log_probabilities(self, states: FloatArray) -> FloatArray:
        """[n, vocabulary]: the predictions that states [n, state_size] of a word model hold, whole."""
        assert isinstance(self._module, ReferenceWordStep)
        outputs = torch.from_numpy(states)[:, self._module.output].to(self._device)
        found: FloatArray = self._module.network.head(outputs).log_softmax(dim=1).cpu().numpy()
        return found

    @torch.inference_mode()
    def _compute(self, inputs: Tensor, states: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._module(inputs, states, *self._arguments))

    def _named(self, columns: tuple[Tensor, ...]) -> tuple[Outputs, FloatArray]:
        *arrays, states = (column.numpy() for column in columns)
        if self._labels:
            return ProbabilityOutputs(np.full(len(states), np.nan, np.float32), *arrays), states
        if self._notes:
            return ProbabilityOutputs(*arrays), states
        if self._text is None:
            return ValueOutputs(*arrays), states
        surprises, tokens, probabilities = arrays
        return WordOutputs(surprises, tokens.astype(np.int32), probabilities), states

    def _capture(self, size: int) -> _Graph:
        shape = (size,) if self._text is not None else (size, self._columns or self._notes)
        dtype = torch.int64 if self._text is not None else torch.float64
        inputs = torch.zeros(shape, dtype=dtype, device="cuda")
        states = torch.zeros((size, self.state_size), device="cuda")
        # Capture needs lazily made workspaces to exist: run the step a few times on a stream of its own.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._compute(inputs, states)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._compute(inputs, states)
        return _Graph(graph, inputs, states, outputs)

    def _replay(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        count = len(inputs)
        graph = self._graphs[next(size for size in _BUCKETS if size >= count)]
        graph.inputs[:count].copy_(torch.from_numpy(inputs))
        graph.states[:count].copy_(torch.from_numpy(states))
        graph.graph.replay()
        # Copies to the host wait for the replay, so the buffers are free for the next step.
        return self._named(tuple(column[:count].cpu() for column in graph.outputs))


class _Graph:
    """A captured step with the device buffers it reads and writes."""

    def __init__(self, graph: Any, inputs: Tensor, states: Tensor, outputs: tuple[Tensor, ...]) -> None:
        self.graph, self.inputs, self.states, self.outputs = graph, inputs, states, outputs
