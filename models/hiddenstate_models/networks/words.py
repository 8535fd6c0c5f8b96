"""One recurrent network: encoder, stack of cells, head. What a bundle's weights are the weights of."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.cells import Cell, CellOptions, RecurrentStack
from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.networks.cross_entropy import cross_entropy

IGNORED = -100
"""The target that no loss is counted for: padding after a document's end."""


@dataclass(frozen=True, kw_only=True)
class NextWordConfig(CellOptions):
    """A network that reads token ids and predicts the next one."""

    cell: Cell = "lstm"
    hidden_sizes: tuple[int, ...] = (256, 256)
    vocabulary_size: int
    embedding_size: int = 256
    tied: bool = True
    teacher_forcing: bool = False
    """In training a Jordan network is fed the word that came, as its output layer has it, in place of its output."""

    task: Literal["next-word"] = "next-word"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tied and self.embedding_size != self.output_size:
            raise ConfigurationError(
                "a tied output layer needs an embedding as large as the stack's output: "
                f"{self.embedding_size} is not {self.output_size}"
            )
        if self.teacher_forcing and self.cell != "jordan":
            raise ConfigurationError(f"teacher forcing is for Jordan networks; the cell is {self.cell}")


class Vocabulary(nn.Module):
    """The output layer over all words; tied, it shares the embedding's weights (Press & Wolf, 2017)."""

    def __init__(self, config: NextWordConfig, embedding: nn.Embedding, input_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.vocabulary_size))
        self.weight: nn.Parameter
        self._shared = [embedding] if config.tied else []
        if not config.tied:
            self.weight = nn.Parameter(torch.empty(config.vocabulary_size, input_size).uniform_(-0.1, 0.1))

    @property
    def matrix(self) -> Tensor:
        """[vocabulary, output]."""
        return self._shared[0].weight if self._shared else self.weight

    @torch.no_grad()
    def start_from(self, counts: Tensor) -> None:
        """Starts biases at log frequencies of words seen counts [vocabulary] times, as if each were seen once more."""
        self.bias.copy_((counts + 1).log() - (counts + 1).sum().log())

    def forward(self, outputs: Tensor) -> Tensor:
        """outputs [..., output] -> logits [..., vocabulary]."""
        return F.linear(outputs, self.matrix, self.bias)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Summed negative log-likelihood in nats of targets [T, B] given outputs [T, B, output], IGNORED ones apart."""
        known = targets != IGNORED
        return cross_entropy(outputs[known], self.matrix, self.bias, targets[known])


class NextWordNetwork(nn.Module):
    """Embedding -> stack of cells -> vocabulary, dropout on the embedding and on the stack's output.

    `forward` and `step` agree; both give the stack's outputs, which the head turns into logits.
    """

    def __init__(self, config: NextWordConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Embedding(config.vocabulary_size, config.embedding_size)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        self.cells = RecurrentStack(config.embedding_size, config)
        self.head = Vocabulary(config, self.encoder, self.cells.output_size)

    @property
    def state_size(self) -> int:
        """Numbers in a session's recurrent state."""
        return self.cells.state_size

    def initial_state(self, batch: int) -> Tensor:
        """Zeros [batch, state_size]."""
        return self.cells.initial_state(batch)

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [T, B], state [B, state_size] -> outputs [T, B, output], state after the last step."""
        embedded = self.cells.drop(self.encoder(tokens))
        taught = self.training and self.config.teacher_forcing
        # The target of each step is the word read at the next one; of the last step no other asks.
        targets = F.embedding(tokens, self.head.matrix).roll(-1, dims=0) if taught else None
        outputs, state = self.cells(embedded, state, targets)
        return self.cells.drop(outputs), state

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B], state [B, state_size] -> output [B, output], state."""
        return self.cells.step(self.encoder(tokens), state)
