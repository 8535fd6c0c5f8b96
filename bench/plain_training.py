"""A word-level LSTM as most people would train it: what `bench.training` measures the training loop against.

Written in the manner of pytorch/examples' word_language_model: one long text in so many columns, torch's own LSTM over
35 rows of it at a time with the state carried along, a linear layer and a softmax over the whole vocabulary, gradients
clipped, and a step.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hiddenstate_models.networks.words import NextWordConfig


class Hyperparameters(NamedTuple):
    """What both sides of the comparison share."""

    epochs: int
    columns: int
    steps: int
    learning_rate: Callable[[int, int], float]
    """Of an update, counted from 0, and how many there are in all."""
    clip_norm: float


class PlainModel(nn.Module):
    """Embedding, LSTM, and an output layer tied to the embedding; log-probabilities of all words at every step."""

    def __init__(self, config: NextWordConfig) -> None:
        super().__init__()
        size, layers = config.hidden_sizes[0], len(config.hidden_sizes)
        self.drop = nn.Dropout(config.dropout)
        self.encoder = nn.Embedding(config.vocabulary_size, config.embedding_size)
        self.rnn = nn.LSTM(config.embedding_size, size, layers, dropout=config.dropout)
        self.decoder = nn.Linear(size, config.vocabulary_size)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor, hidden: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """tokens [T, B] -> log-probabilities [T * B, vocabulary], state."""
        output, hidden = self.rnn(self.drop(self.encoder(tokens)), hidden)
        decoded = self.decoder(self.drop(output))
        return torch.log_softmax(decoded.view(-1, decoded.shape[-1]), dim=1), hidden


class PlainLoop:
    """Trains a plain model, some updates at a time."""

    def __init__(self, model: PlainModel, tokens: npt.NDArray[np.int32], settings: Hyperparameters) -> None:
        rows = len(tokens) // settings.columns
        text = torch.from_numpy(tokens[: rows * settings.columns].astype(np.int64))
        self._data = text.view(settings.columns, -1).t().contiguous()
        self._settings = settings
        self._model = model
        self._criterion = nn.NLLLoss()
        self._optimizer = torch.optim.Adam(model.parameters(), fused=True)
        self._hidden: tuple[Tensor, Tensor] | None = None
        self._row = 0
        self._update = 0
        self.updates = settings.epochs * -(-(rows - 1) // settings.steps)
        """In all."""

    def train(self, updates: int) -> int:
        """So many updates, or as many as are left; how many tokens were learnt from."""
        self._model.train()
        learnt = 0
        for _ in range(min(updates, self.updates - self._update)):
            length = min(self._settings.steps, len(self._data) - 1 - self._row)
            inputs = self._data[self._row : self._row + length]
            targets = self._data[self._row + 1 : self._row + 1 + length].reshape(-1)
            if self._hidden is not None:
                self._hidden = (self._hidden[0].detach(), self._hidden[1].detach())
            self._model.zero_grad()
            output, self._hidden = self._model(inputs, self._hidden)
            loss = self._criterion(output, targets)
            loss.backward()
            nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip_norm)
            for group in self._optimizer.param_groups:
                group["lr"] = self._settings.learning_rate(self._update, self.updates)
            self._optimizer.step()
            self._update += 1
            self._row += length
            if self._row >= len(self._data) - 1:
                self._row, self._hidden = 0, None
            learnt += len(targets)
        return learnt
