"""Weights of torch.nn.LSTM, GRU and RNN out of a state dict, in safetensors or in torch's own format."""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.errors import DataError
from hiddenstate_models.importing.source import Floats, Inputs, Layer, Parts, only

_RECURRENT = re.compile(
    r"^(?P<module>.*?)(weight_[ih]h|bias_[ih]h|weight_hr)(_l(?P<layer>\d+))?(?P<reverse>_reverse)?$"
)
_GATES = {4: "lstm", 3: "gru", 1: "rnn"}
_WRAPPERS = ("state_dict", "model_state_dict", "model")


class TorchSource:
    """A state dict; `run` puts its tensors into torch's own modules."""

    also_computes: Sequence[str] = ()

    def __init__(self, path: Path, task: str, roles: Mapping[str, str], activation: str) -> None:
        """roles: the model's own names of "cells" (modules, comma-separated), "embedding" and "output".

        activation: of a plain RNN, "tanh" or "relu"; a state dict does not tell.

        Raises:
            DataError: the file cannot be read, or holds something else than embedding, cells and a linear output.
        """
        self._tensors = _read(path)
        self._activation = activation
        self._modules = self._find_modules(path, roles.get("cells"))
        stacks = [self._stack(module) for module in self._modules]
        kinds = {kind for kind, _ in stacks}
        if len(kinds) > 1:
            raise DataError(f"a bundle has cells of one kind, but {path} has {' and '.join(sorted(kinds))}")
        layers = [layer for _, stack in stacks for layer in stack]
        rest = {name: tensor for name, tensor in self._tensors.items() if not self._is_recurrent(name)}
        self._embedding = self._find_embedding(rest, layers[0], roles) if task == "next-word" else None
        self._output = self._find_output(rest, layers[-1], roles)
        bias = _bias_of(self._output, rest) or self._bias_of_shared(rest)
        used = {self._embedding, self._output, bias}
        if left := sorted(rest.keys() - used):
            raise DataError(
                f"{path} holds {', '.join(left)}, for which a {task} bundle has no place: it has "
                f"{'an embedding, ' if task == 'next-word' else ''}recurrent layers and one linear output layer"
            )
        matrix = _array(rest[self._output])
        self.parts = Parts(
            cell=kinds.pop(),
            layers=layers,
            output=matrix,
            bias=_array(rest[bias]) if bias else np.zeros(len(matrix), np.float32),
            embedding=_array(rest[self._embedding]) if self._embedding else None,
        )

    @torch.no_grad()
    def run(self, inputs: Inputs) -> list[Floats]:
        """See Source."""
        x = torch.from_numpy(inputs)
        x = F.embedding(x, torch.from_numpy(self.parts.embedding)) if self.parts.embedding is not None else x
        for name in self._modules:
            x, _ = self._module(name)(x)
        outputs = F.linear(x, torch.from_numpy(self.parts.output), torch.from_numpy(self.parts.bias))
        return [outputs.numpy()]

    def _module(self, name: str) -> nn.Module:
        """torch's module with the tensors of this name."""
        tensors = {
            key.removeprefix(name) + ("" if re.search(r"_l\d+$", key) else "_l0"): tensor.float()
            for key, tensor in self._tensors.items()
            if key.startswith(name) and self._is_recurrent(key)
        }
        kind, stack = self._stack(name)
        arguments: dict[str, Any] = {"num_layers": len(stack), "bias": "bias_ih_l0" in tensors}
        if stack[0].weight_hr is not None:
            arguments["proj_size"] = len(stack[0].weight_hr)
        if kind.startswith("rnn"):
            arguments["nonlinearity"] = self._activation
        make = {"lstm": nn.LSTM, "gru": nn.GRU}.get(kind, nn.RNN)
        module: nn.Module = make(stack[0].weight_ih.shape[1], stack[0].units, **arguments)
        module.load_state_dict(tensors)
        return module

    def _is_recurrent(self, name: str) -> bool:
        match = _RECURRENT.match(name)
        return match is not None and match["module"] in self._modules

    def _find_modules(self, path: Path, told: str | None) -> list[str]:
        matches = [match for name in self._tensors if (match := _RECURRENT.match(name))]
        found = list(dict.fromkeys(match["module"] for match in matches))
        if told is not None:
            modules = [next((m for m in found if m.strip(".") == one.strip(" .")), None) for one in told.split(",")]
            if None in modules:
                raise DataError(f"{path} has no recurrent module {told!r}; there are {', '.join(found) or 'none'}")
            found = [module for module in modules if module is not None]
        if not found:
            raise DataError(
                f"{path} holds no weights of an LSTM, GRU or RNN of torch (weight_ih_l0, weight_hh_l0, ...)"
            )
        if len(found) > 1 and told is None:
            names = ",".join(module.strip(".") for module in found)
            raise DataError(f"{path} has several recurrent modules; say in which order they run: --map cells={names}")
        if any(match["reverse"] for match in matches if match["module"] in found):
            raise DataError(
                f"{path} is bidirectional. A bidirectional model reads the future, which a session does not have yet: "
                "train it with bidirectional=False"
            )
        return found

    def _stack(self, module: str) -> tuple[str, list[Layer]]:
        """Kind of cell and layers of one recurrent module."""
        layers: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self._tensors.items():
            match = _RECURRENT.match(name)
            if match and match["module"] == module:
                layers.setdefault(int(match["layer"] or 0), {})[match[2]] = tensor
        stack, kind = [], ""
        for number in sorted(layers):
            tensors = layers[number]
            if not {"weight_ih", "weight_hh"} <= tensors.keys():
                raise DataError(f"layer {number} of {module.strip('.') or 'the model'} lacks weight_ih or weight_hh")
            rows, units = len(tensors["weight_ih"]), tensors.get("weight_hr", tensors["weight_hh"]).shape[1]
            kind = _GATES.get(rows // units if rows % units == 0 else 0, "")
            if not kind or len(tensors["weight_hh"]) != rows:
                shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
                raise DataError(f"layer {number} of {module.strip('.')} is no LSTM, GRU or RNN of torch: {shapes}")
            zeros = torch.zeros(rows)
            hr = tensors.get("weight_hr")
            stack.append(
                Layer(
                    _array(tensors["weight_ih"]),
                    _array(tensors["weight_hh"]),
                    _array(tensors.get("bias_ih", zeros)),
                    _array(tensors.get("bias_hh", zeros)),
                    None if hr is None else _array(hr),
                )
            )
        return f"rnn-{self._activation}" if kind == "rnn" else kind, stack

    def _find_embedding(self, rest: Mapping[str, Tensor], first: Layer, roles: Mapping[str, str]) -> str:
        size = first.weight_ih.shape[1]
        if told := roles.get("embedding"):
            return _named(told, rest)
        fits = [n for n, t in rest.items() if t.ndim == 2 and t.shape[1] == size and not _bias_of(n, rest)]
        return only(fits, f"the embedding [words, {size}]", "embedding")

    def _find_output(self, rest: Mapping[str, Tensor], last: Layer, roles: Mapping[str, str]) -> str:
        if told := roles.get("output"):
            return _named(told, rest)
        size = last.weight_hh.shape[1]
        outputs = None if self._embedding is None else len(rest[self._embedding])
        fits = [
            name
            for name, tensor in rest.items()
            if tensor.ndim == 2
            and tensor.shape[1] == size
            and name != self._embedding
            and outputs in (None, len(tensor))
        ]
        if not fits and self._embedding and rest[self._embedding].shape[1] == size:
            return self._embedding  # weights that two layers share are often stored once
        return only(fits, f"the output layer [outputs, {size}]", "output")

    def _bias_of_shared(self, rest: Mapping[str, Tensor]) -> str | None:
        """The bias of an output layer whose weights are stored as the embedding's alone."""
        if self._output != self._embedding:
            return None
        fits = [name for name, tensor in rest.items() if tensor.shape == rest[self._output].shape[:1]]
        return only(fits, "the output layer's bias", "output") if fits else None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        read: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds more than tensors, and unpickling that could run anything: save the weights alone by "
            "torch.save(model.state_dict(), FILE) or safetensors.torch.save_file(model.state_dict(), FILE)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError) as error:
        raise DataError(f"cannot read weights from {path}: {error}") from error
    for wrapper in _WRAPPERS:
        if isinstance(read, Mapping) and isinstance(read.get(wrapper), Mapping):
            read = read[wrapper]
            break
    if not isinstance(read, Mapping):
        raise DataError(f"{path} holds a {type(read).__name__}, not a state dict: names and tensors")
    tensors = {str(name): tensor for name, tensor in read.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise DataError(f"{path} holds no tensors")
    return tensors


def _array(tensor: Tensor) -> Floats:
    return np.ascontiguousarray(tensor.detach().float().numpy())


def _bias_of(weight: str, tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a linear layer's bias, if it has one."""
    bias = re.sub(r"weight$", "bias", weight)
    return bias if bias != weight and bias in tensors else None


def _named(told: str, tensors: Mapping[str, Tensor]) -> str:
    for name in (told, f"{told}.weight"):
        if name in tensors:
            return name
    raise DataError(f"there is no tensor {told!r}; there are {', '.join(sorted(tensors))}")
