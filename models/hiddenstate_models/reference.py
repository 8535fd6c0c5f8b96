"""The served step in PyTorch, in any precision: what runs on GPUs, and what the ONNX graphs are held against."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hiddenstate_models.bundle import LOG_NORMALIZER_SIZE, WEIGHTS_FILE, Bundle
from hiddenstate_models.networks.distributions import (
    PARAMETERS,
    Prediction,
    in_units,
    negative_log_likelihood,
    read_head,
)
from hiddenstate_models.networks.forecasting import ForecastingConfig, ForecastingNetwork
from hiddenstate_models.networks.labels import LabellingConfig, LabellingNetwork
from hiddenstate_models.networks.music import MusicConfig, MusicNetwork, frame_losses
from hiddenstate_models.networks.scaling import last_values
from hiddenstate_models.networks.values import NextValueConfig, NextValueNetwork
from hiddenstate_models.networks.words import NextWordConfig, NextWordNetwork


class WordStep(NamedTuple):
    """One step of n sessions of a word model."""

    surprises: Tensor
    """[n]: -log p of the tokens under the predictions before them, in nats."""
    top_tokens: Tensor
    """int64 [n, k], best first."""
    top_probabilities: Tensor
    """[n, k]."""
    next_states: Tensor
    """[n, state_size]."""


class ReferenceWordStep(nn.Module):
    """Steps rows of a next-word model."""

    def __init__(self, network: NextWordNetwork) -> None:
        super().__init__()
        self.network = network
        size = network.cells.output_size
        # Where the state does not hold the stack's output, it is kept beside it.
        kept = 0 if network.cells.holds_output else size
        self.sizes = [network.state_size, kept, LOG_NORMALIZER_SIZE]
        start = network.state_size if kept else network.state_size - network.cells.row_sizes[-1]
        self.output = slice(start, start + size)

    def forward(self, tokens: Tensor, states: Tensor, k: int) -> WordStep:
        """tokens int64 [n], states [n, state_size] -> predictions of the tokens after them."""
        state, kept, log_normalizer = states.split(self.sizes, dim=1)
        head = self.network.head
        logits = (head.matrix[tokens] * states[:, self.output]).sum(dim=1) + head.bias[tokens]
        surprises = log_normalizer.squeeze(1) - logits

        outputs, state = self.network.step(tokens, state)
        logits = head(outputs)
        log_normalizer = logits.logsumexp(dim=1, keepdim=True)
        best, top_tokens = logits.topk(k, dim=1)
        row = torch.cat((state, outputs[:, : kept.shape[1]], log_normalizer), dim=1)
        return WordStep(surprises, top_tokens, (best - log_normalizer).exp(), row)


class ValueStep(NamedTuple):
    """One step of n sessions of a value model."""

    surprises: Tensor
    """[n]: -log p of the values under the predictions before them, summed over the targets observed, in nats;
    NaN where nothing was observed or nothing had been predicted."""
    locations: Tensor
    """float64 [n, targets], in the client's units; NaN before a target's first value."""
    scales: Tensor
    """float64 [n, targets], likewise."""
    degrees_of_freedom: Tensor
    """[n, targets]; infinite for a Gaussian."""
    next_states: Tensor
    """[n, state_size]."""


class ReferenceValueStep(nn.Module):
    """Steps rows of a next-value model; a row ends with the last prediction, its location as an offset."""

    targets: Tensor

    def __init__(self, network: NextValueNetwork) -> None:
        super().__init__()
        self.network = network
        config = network.config
        # On the device: copying indices there would break the capture of a CUDA graph.
        self.register_buffer("targets", torch.tensor(config.targets), persistent=False)
        self.parameters_each = PARAMETERS[config.distribution]
        memory = self.parameters_each * len(self.targets)
        self.sizes = [network.cells.state_size, network.encoder.state_size, memory]

    def forward(self, values: Tensor, states: Tensor) -> ValueStep:
        """values float64 [n, columns] with NaN where missing, states [n, state_size] -> predictions of the next."""
        recurrent, scaling, memory = states.split(self.sizes, dim=1)
        scaling = scaling.float()
        last = last_values(scaling, self.network.config.columns)
        surprises = _surprises((values - last)[:, self.targets], memory, self.parameters_each)

        scaled, scaling = self.network.encoder.step(values, scaling)
        outputs, recurrent = self.network.cells.step(scaled.features.to(states.dtype), recurrent)
        prediction = read_head(self.network.head(outputs), self.network.config.distribution)
        anchors, units = scaled.anchors[:, self.targets], scaled.units[:, self.targets]
        served = in_units(prediction, anchors, units)
        never = anchors.isnan()
        # What a fixed mean is away from the last value; an online anchor is the last value.
        away = (anchors - last_values(scaling, self.network.config.columns)[:, self.targets]).nan_to_num(0.0)
        offsets = away + units * prediction.locations
        remembered = _remembered(offsets, served, never)[: self.parameters_each]
        row = torch.cat([piece.to(states.dtype) for piece in (recurrent, scaling, *remembered)], dim=1)
        return _value_step(surprises, served, never, row)


def _remembered(offsets: Tensor, served: Prediction, never: Tensor) -> list[Tensor]:
    """What a row keeps of a prediction, parameter by parameter; a Gaussian has the first two."""
    return [offsets, served.scales.masked_fill(never, 0.0), served.degrees_of_freedom]


def _value_step(surprises: Tensor, served: Prediction, never: Tensor, row: Tensor) -> ValueStep:
    """Answers with a prediction in the client's units; `never` is where nothing has been seen."""
    scales = served.scales.masked_fill(never, torch.nan)
    return ValueStep(surprises, served.locations, scales, served.degrees_of_freedom, row)


def _surprises(moves: Tensor, memory: Tensor, parameters: int) -> Tensor:
    """-log p [n] of the moves [n, targets] under the prediction before them, summed over the targets observed."""
    offsets, scales, *freedom = memory.double().chunk(parameters, dim=1)
    prediction = Prediction(offsets, scales, freedom[0] if freedom else torch.full_like(scales, torch.inf))
    terms = negative_log_likelihood(prediction, moves)
    observed = ~terms.isnan() & (scales > 0)
    total = torch.where(observed, terms, 0.0).sum(dim=1)
    return torch.where(observed.any(dim=1), total, torch.nan).to(memory.dtype)


class NoteStep(NamedTuple):
    """One step of n sessions of a music model."""

    surprises: Tensor
    """[n]: -log p of the frames under the predictions before them, summed over the notes, in nats."""
    probabilities: Tensor
    """[n, notes]: that each note sounds in the next frame."""
    next_states: Tensor
    """[n, state_size]."""


class ReferenceNoteStep(nn.Module):
    """Steps rows of a music model; a row ends with the logits of the next frame."""

    def __init__(self, network: MusicNetwork) -> None:
        super().__init__()
        self.network = network
        self.sizes = [network.state_size, network.config.notes]

    def forward(self, frames: Tensor, states: Tensor) -> NoteStep:
        """frames float64 [n, notes] of 0 and 1, states [n, state_size] -> predictions of the frames after them."""
        state, predicted = states.split(self.sizes, dim=1)
        surprises = frame_losses(predicted, frames)
        logits, state = self.network.step(frames, state)
        return NoteStep(surprises, logits.sigmoid(), torch.cat((state, logits), dim=1))


class ReferenceForecastStep(nn.Module):
    """Steps rows of a forecasting model; a row ends with what was predicted to be next, its location as an offset."""

    def __init__(self, network: ForecastingNetwork) -> None:
        super().__init__()
        self.network = network
        config = network.config
        self.parameters_each = PARAMETERS[config.distribution]
        self.sizes = [network.state_size, self.parameters_each * len(config.targets)]
        self.scaling = slice(network.cells.state_size, network.cells.state_size + network.encoder.state_size)

    def forward(self, values: Tensor, states: Tensor) -> ValueStep:
        """values float64 [n, columns] with NaN where missing, states [n, state_size] -> [n, horizon, targets] ahead."""
        state, memory = states.split(self.sizes, dim=1)
        last = last_values(state[:, self.scaling].float(), self.network.config.columns)
        surprises = _surprises((values - last)[:, self.network.targets], memory, self.parameters_each)
        origins, state = self.network.step(values, state)
        prediction = Prediction(*(field.squeeze(0) for field in self.network.decode(origins)))
        anchors, units = origins.anchors[0].unsqueeze(1), origins.units[0].unsqueeze(1)
        served = in_units(prediction, anchors, units)
        never = anchors.isnan()
        remembered = _remembered(units * prediction.locations, served, never)[: self.parameters_each]
        row = torch.cat([state, *(field[:, 0].to(states.dtype) for field in remembered)], dim=1)
        return _value_step(surprises, served, never, row)


class LabelStep(NamedTuple):
    """One step of n sessions of a model that labels text."""

    probabilities: Tensor
    """[n, labels]"""
    next_states: Tensor
    """[n, state_size]."""


class ReferenceLabelStep(nn.Module):
    """Steps rows of a model that labels text."""

    def __init__(self, network: LabellingNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, states: Tensor) -> LabelStep:
        """tokens int64 [n], states [n, state_size] -> labels after them."""
        logits, states = self.network.step(tokens, states)
        return LabelStep(logits.softmax(dim=1), states)


ReferenceStep = ReferenceWordStep | ReferenceValueStep | ReferenceNoteStep | ReferenceForecastStep | ReferenceLabelStep


def reference_word_step(
    fields: dict[str, Any], weights: Path, *, dtype: torch.dtype = torch.float32
) -> ReferenceWordStep:
    """That of a next-word network, from its configuration and the file of its weights."""
    step = ReferenceWordStep(NextWordNetwork(NextWordConfig.from_dict(fields)))
    _load(step, weights, dtype)
    return step


def reference_step(bundle: Bundle, *, dtype: torch.dtype = torch.float32) -> ReferenceStep:
    """The served step of a bundle, without gradients and ready to move to a device."""
    step: ReferenceStep
    fields = bundle.config.network
    if bundle.config.task == "next-word":
        return reference_word_step(fields, bundle.folder / WEIGHTS_FILE, dtype=dtype)
    if bundle.config.task == "forecasting":
        step = ReferenceForecastStep(ForecastingNetwork(ForecastingConfig.from_dict(fields)))
    elif bundle.config.task in ("classification", "tagging"):
        step = ReferenceLabelStep(LabellingNetwork(LabellingConfig.from_dict(fields)))
    elif bundle.config.task == "music":
        step = ReferenceNoteStep(MusicNetwork(MusicConfig.from_dict(fields)))
    else:
        step = ReferenceValueStep(NextValueNetwork(NextValueConfig.from_dict(fields)))
    _load(step, bundle.folder / WEIGHTS_FILE, dtype)
    return step


def _load(step: ReferenceStep, weights: Path, dtype: torch.dtype) -> None:
    step.network.load_state_dict(load_file(weights))
    step.to(dtype).eval().requires_grad_(False)
