"""Networks that label text: embedding -> stack of cells -> one label for all that was read, or one for each word."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.cells import Cell, CellOptions, RecurrentStack
from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.networks.crf import Crf

IGNORED = -100
"""The target that no loss is counted for."""

_ALPHABET = 256
"""Characters told apart; all others are the first one."""
_LETTERS = 20
"""Of longer words the first and last half of so many characters are read."""


_UNSERVED = ("characters", "bidirectional", "crf", "teacher_forcing")


@dataclass(frozen=True, kw_only=True)
class LabellingConfig(CellOptions):
    """A network that reads token ids and says which of `labels` labels they have."""

    task: Literal["classification", "tagging"]
    cell: Cell = "lstm"
    hidden_sizes: tuple[int, ...] = (128,)
    vocabulary_size: int
    embedding_size: int = 128
    labels: int
    pooling: Literal["last", "max", "mean"] = "last"
    """What is labelled: the stack's output, or its maximum (with 0) or mean over all steps so far."""

    # These are for training and offline use; a served network has none of them.
    characters: int = 0
    """Features read from each word's characters, beside its embedding."""
    bidirectional: bool = False
    """Read sentences backwards too."""
    crf: bool = False
    """Label whole sentences by a conditional random field."""
    teacher_forcing: bool = False
    """In training a Jordan network is fed the right label, as its output layer has it, in place of its output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_forcing and (self.cell != "jordan" or self.task != "tagging" or self.bidirectional):
            raise ConfigurationError(
                "teacher forcing is for Jordan networks that tag words and read forwards alone; "
                f"this is a {self.task} network of the cell {self.cell}"
            )
        if self.task == "classification" and (self.bidirectional or self.crf):
            raise ConfigurationError("bidirectional and crf are for tagging")
        if self.bidirectional and self.pooling != "last":
            raise ConfigurationError("pooling is for networks that read forwards alone")

    @property
    def streams(self) -> bool:
        """Whether labels depend on nothing that comes later, so that the network can be served."""
        return not self.bidirectional and not self.crf

    def served(self) -> dict[str, Any]:
        """As a bundle has it, characters folded into the embedding."""
        fields = self.to_dict() | {"embedding_size": self.embedding_size + self.characters}
        return {name: value for name, value in fields.items() if name not in _UNSERVED}


class Characters(nn.Module):
    """Features of words: the largest answers of a convolution over their characters (Ma & Hovy, 2016)."""

    spellings: Tensor

    def __init__(self, size: int, words: Sequence[str]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_ALPHABET, 30, padding_idx=0)
        self.convolution = nn.Conv1d(30, size, 3, padding=1)
        self.register_buffer("spellings", _spellings(words), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [n] -> [n, size]."""
        letters = self.spellings[tokens].long()
        features = self.convolution(F.dropout(self.embedding(letters), 0.25, self.training).transpose(1, 2))
        features = features.masked_fill((letters == 0).unsqueeze(1), -torch.inf)
        best: Tensor = features.amax(dim=2)
        return best.clamp(min=-10.0)


class WordEncoder(nn.Module):
    """Embedding of words, joined to features of their characters where asked for.

    In training some words are read as if they were unknown, so that the tokens of unknown ones are learnt.
    """

    in_place: Tensor
    rates: Tensor

    def __init__(self, config: LabellingConfig, words: Sequence[str]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocabulary_size, config.embedding_size).normal_(0.0, 0.1))
        self.characters = Characters(config.characters, words) if config.characters else None
        self.output_size = config.embedding_size + config.characters
        self.register_buffer("in_place", torch.arange(config.vocabulary_size), persistent=False)
        self.register_buffer("rates", torch.zeros(config.vocabulary_size), persistent=False)

    def forget(self, in_place: Tensor, rates: Tensor) -> None:
        """In training each word is replaced by the token in_place [vocabulary], at its rate [vocabulary]."""
        self.in_place.copy_(in_place)
        self.rates.copy_(rates)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [...] -> [..., output]."""
        if self.training:
            forgotten = torch.rand(tokens.shape, device=tokens.device) < self.rates[tokens]
            tokens = torch.where(forgotten, self.in_place[tokens], tokens)
        embedded: Tensor = F.embedding(tokens, self.weight)
        if self.characters is None:
            return embedded
        different, places = tokens.unique(return_inverse=True)
        return torch.cat((embedded, self.characters(different)[places]), dim=-1)

    def table(self) -> Tensor:
        """[vocabulary, output]: what is read for each token."""
        table: Tensor = self(torch.arange(len(self.weight), device=self.weight.device))
        return table


class LabellingNetwork(nn.Module):
    """Encoder, stack and head; `forward` and `step` agree where the network reads forwards alone.

    A sentence begins with the end token. Tokens below 0 are padding.
    """

    def __init__(self, config: LabellingConfig, words: Sequence[str] = ()) -> None:
        """words by token, where the configuration asks for characters."""
        super().__init__()
        self.config = config
        self.encoder = WordEncoder(config, words)
        self.cells = RecurrentStack(self.encoder.output_size, config)
        self.backwards = RecurrentStack(self.encoder.output_size, config) if config.bidirectional else None
        width = self.cells.output_size * (2 if config.bidirectional else 1)
        self.head = nn.Linear(width, config.labels)
        self.crf = Crf(config.labels) if config.crf else None
        self.pool_size = {"last": 0, "max": width, "mean": width + 1}[config.pooling]

    @property
    def state_size(self) -> int:
        """Numbers in a session's state: that of the cells, then what pooling keeps."""
        return self.cells.state_size + self.pool_size

    def initial_state(self, batch: int) -> Tensor:
        """Zeros [batch, state_size]."""
        return self.head.weight.new_zeros(batch, self.state_size)

    @property
    def taught(self) -> bool:
        """Whether `forward` is to be told the targets in training."""
        return self.config.teacher_forcing

    def forward(self, tokens: Tensor, state: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens [T, B], state [B, state_size] -> logits [T, B, labels], state after the last step.

        With targets [T, B] each step reads the label before it, where that is not IGNORED, as a taught network does.
        """
        x = self.cells.drop(self.encoder(tokens.clamp(min=0)))
        state, pooled = state.split([self.cells.state_size, self.pool_size], dim=1)
        outputs, state = self.cells(x, state, None if targets is None else self._as_outputs(targets))
        if self.backwards is not None:
            order = _reversal(tokens >= 0)
            turned, _ = self.backwards(_reordered(x, order), self.backwards.initial_state(tokens.shape[1]))
            outputs = torch.cat((outputs, _reordered(turned, order)), dim=2)
        outputs, pooled = self._pool(outputs, pooled)
        return self.head(self.cells.drop(outputs)), torch.cat((state, pooled), dim=1)

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B], state [B, state_size] -> logits [B, labels], state."""
        state, pooled = state.split([self.cells.state_size, self.pool_size], dim=1)
        output, state = self.cells.step(self.encoder(tokens), state)
        outputs, pooled = self._pool(output.unsqueeze(0), pooled)
        return self.head(outputs[0]), torch.cat((state, pooled), dim=1)

    def _as_outputs(self, targets: Tensor) -> Tensor:
        """[T, B, output]: what stands for each label in the output layer; zeros for those that are IGNORED."""
        rows = F.embedding(targets.clamp(min=0), self.head.weight)
        return rows.masked_fill((targets == IGNORED).unsqueeze(2), 0)

    @torch.no_grad()
    def served_weights(self) -> dict[str, Tensor]:
        """The weights of the network that `config.served` describes: characters are a part of each embedding."""
        weights = {name: tensor for name, tensor in self.state_dict().items() if ".characters." not in name}
        return weights | {"encoder.weight": self.eval().encoder.table()}

    def _pool(self, outputs: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """outputs [T, B, width], what was kept before -> what is labelled at each step, what is kept after the last."""
        if self.config.pooling == "max":
            highest = torch.maximum(outputs.cummax(dim=0).values, before)
            return highest, highest[-1]
        if self.config.pooling == "mean":
            total, count = before[:, :-1], before[:, -1:]
            totals = total + outputs.cumsum(dim=0)
            counts = count + torch.arange(1, len(outputs) + 1, device=count.device).view(-1, 1, 1)
            return totals / counts, torch.cat((totals[-1], counts[-1]), dim=1)
        return outputs, before


def _reversal(counts: Tensor) -> Tensor:
    """int64 [T, B]: step t of a sequence turned around, the padding after it left where it is; counts bool [T, B]."""
    steps = torch.arange(len(counts), device=counts.device).unsqueeze(1)
    lengths = counts.sum(dim=0)
    return torch.where(steps < lengths, lengths - 1 - steps, steps)


def _reordered(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(0, order.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _spellings(words: Sequence[str]) -> Tensor:
    """uint8 [words, letters]: each word's characters, 0 after its last."""
    half = _LETTERS // 2
    table = torch.zeros(len(words), _LETTERS, dtype=torch.uint8)
    for row, word in zip(table, words, strict=True):
        letters = word if len(word) <= _LETTERS else word[:half] + word[-half:]
        codes = [ord(letter) if 1 < ord(letter) < _ALPHABET else 1 for letter in letters]
        row[: len(codes)] = torch.tensor(codes, dtype=torch.uint8)
    return table
