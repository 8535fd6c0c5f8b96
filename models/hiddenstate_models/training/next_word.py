"""Learning to predict the next word."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from hiddenstate_models.data import sources, text
from hiddenstate_models.data.lanes import Chunk, Lanes
from hiddenstate_models.data.text import Corpus
from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.networks.words import IGNORED, NextWordConfig, NextWordNetwork
from hiddenstate_models.training.cell_options import CellFlags, with_default
from hiddenstate_models.training.holding_out import held_out
from hiddenstate_models.training.objectives import FullSoftmax, SampledSoftmax, smoothing
from hiddenstate_models.training.options import TrainingOptions, option
from hiddenstate_models.training.recipe import Prepared, Recipe, Told

_TOKENIZER_FILE = "tokenizer.json"
_EVALUATION_LANES = 64
_EVALUATION_STEPS = 35
_LARGE = 4
"""Vocabularies that are so many times as large as the sample are sampled by themselves."""


@dataclass(frozen=True, kw_only=True)
class NextWordOptions(CellFlags):
    """Settings of a next-word run: the vocabulary, the network and how its output layer is trained."""

    vocabulary: int = option(10_000, "Words in the vocabulary, the most frequent ones.")
    lowercase: bool = option(True, "Lower-case all words.")
    documents: Literal["auto", "file", "blank-line", "line"] = option(
        "auto",
        "Where documents end. auto: articles of WikiText files, blank lines in dialogues (speaker<TAB>words), "
        "rows of tables, else files.",
    )
    hidden: str = with_default("hidden", "256,256")
    embedding: int = option(256, "Size of the word embedding.")
    teacher_forcing: bool = option(
        False,
        "Train a Jordan network on the words that came in place of its outputs, all steps of a window at once "
        "(Williams & Zipser, 1989); served, it reads its own outputs.",
    )
    tied: bool = option(True, "Share the embedding's weights with the output layer.")
    dropout: float = with_default("dropout", 0.2)
    output: Literal["auto", "full", "sampled"] = option(
        "auto",
        "Softmax in training. sampled: several times faster over a large vocabulary, and no worse in the end. auto: "
        "sampled where the vocabulary is at least four times as large as the sample.",
    )
    samples: int = option(1024, "Words in an update's sample; half of them are always the most frequent ones.")
    full_epochs: int = option(
        0, "Last epochs of a sampled run that use the full softmax, if its last noise is to be trained away."
    )
    label_smoothing: float = option(
        0.0, "Share of every target that is spread over all words, in training (Szegedy et al., 2016)."
    )

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigurationError(f"label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")
        if self.samples < 1 or self.full_epochs < 0:
            raise ConfigurationError("samples must be at least 1 and full_epochs at least 0")
        if self.vocabulary < 3:
            raise ConfigurationError(f"a vocabulary needs at least 3 words, not {self.vocabulary}")

    def samples_from(self, vocabulary_size: int) -> bool:
        """Whether training samples the words of a vocabulary of that size."""
        large = vocabulary_size >= _LARGE * self.samples
        return self.output == "sampled" or (self.output == "auto" and large)

    def network(self, vocabulary_size: int) -> NextWordConfig:
        """The network's configuration for a vocabulary of that size (a small corpus may fill less than asked for)."""
        return NextWordConfig(
            **self.cells(),
            vocabulary_size=vocabulary_size,
            embedding_size=self.embedding,
            tied=self.tied,
            teacher_forcing=self.teacher_forcing,
        )


class NextWordTask:
    """Every token of a document from the ones before it; scored by perplexity over the full vocabulary."""

    def __init__(
        self,
        training: Corpus,
        validation: Corpus,
        vocabulary_size: int,
        options: TrainingOptions,
        words: NextWordOptions,
    ) -> None:
        self.lanes = word_lanes(
            training, lanes=options.lanes, steps=options.k1, seed=options.seed, vary=options.sample_k1
        )
        self._validation = validation
        self._sampled_epochs = options.epochs - words.full_epochs if words.samples_from(vocabulary_size) else 0
        self._counts = np.bincount(training.tokens, minlength=vocabulary_size)
        self._sampled = SampledSoftmax(self._counts, words.samples)
        self._full = FullSoftmax()
        self._smoothing = words.label_smoothing

    def prepare(self, network: NextWordNetwork) -> None:
        """Readies a new network: it begins knowing how rare each word is, which updates would teach it slowly."""
        network.head.start_from(torch.from_numpy(self._counts))

    def loss(self, network: nn.Module, outputs: Tensor, targets: Tensor, epoch: int) -> Tensor:
        """Summed cross-entropy in nats of targets [T, B] given outputs [T, B, output]."""
        head = cast(NextWordNetwork, network).head
        softmax = self._sampled.to(outputs.device) if epoch < self._sampled_epochs else self._full
        loss = cast(Tensor, softmax(head, outputs, targets))
        return loss + self._smoothing * smoothing(head, outputs, targets) if self._smoothing else loss

    def count(self, chunk: Chunk) -> int:
        """Tokens to predict."""
        return int((chunk.targets != IGNORED).sum())

    def details(self, loss: float) -> dict[str, float]:
        """For the progress bar: perplexity."""
        return {"perplexity": math.exp(min(loss, 50))}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean loss in nats and perplexity on the validation documents."""
        loss = mean_loss(cast(NextWordNetwork, network), self._validation)
        return {"loss": loss, "perplexity": math.exp(loss)}


def word_lanes(
    corpus: Corpus, *, lanes: int, steps: int, seed: int | None = None, whole: bool = False, vary: bool = False
) -> Lanes:
    """Documents as lanes: each token is the input at its place and the target one place before."""
    documents = [(tokens[:-1], tokens[1:].astype(np.int64)) for tokens in corpus.documents()]
    return Lanes(documents, lanes=lanes, steps=steps, padding=IGNORED, seed=seed, whole=whole, vary=vary)


def read_through(network: NextWordNetwork, corpus: Corpus) -> Iterator[tuple[Tensor, Tensor]]:
    """Reads whole documents, each from a fresh state; outputs [T, B, output] with their targets [T, B], bit by bit."""
    lanes = min(_EVALUATION_LANES, len(corpus.starts))
    device = next(network.parameters()).device
    state = network.initial_state(lanes)
    for chunk in word_lanes(corpus, lanes=lanes, steps=_EVALUATION_STEPS, whole=True).epoch(0):
        state = state.masked_fill(torch.from_numpy(chunk.starts).to(device).unsqueeze(1), 0)
        outputs, state = network(torch.from_numpy(chunk.inputs).to(device), state)
        yield outputs, torch.from_numpy(chunk.targets).to(device)


@torch.no_grad()
def mean_loss(network: NextWordNetwork, corpus: Corpus) -> float:
    """Mean negative log-likelihood in nats a token over whole documents, full vocabulary, state carried."""
    total, count = 0.0, 0
    for outputs, targets in read_through(network, corpus):
        total += float(network.head.loss(outputs, targets))
        count += int((targets != IGNORED).sum())
    return total / count


def _prepare(told: Told[NextWordOptions], resumed: Path | None) -> Prepared:
    words = told.settings
    training, validation = documents_of(told.data, told.valid, words.documents)
    if resumed is not None:
        tokenizer = Tokenizer.from_file(str(resumed / _TOKENIZER_FILE))
    else:
        tokenizer = text.train_tokenizer(training, words.vocabulary, lowercase=words.lowercase)
    size = tokenizer.get_vocab_size()
    config = words.network(size)
    corpus, unseen = text.encode(tokenizer, training), text.encode(tokenizer, validation)
    task = NextWordTask(corpus, unseen, size, told.training, words)
    unknown = float((corpus.tokens == tokenizer.token_to_id(text.UNKNOWN)).mean())
    facts = {
        "documents": len(corpus.starts),
        "tokens an epoch": task.lanes.steps_per_epoch,
        "validation tokens": len(unseen.tokens),
        "vocabulary": f"{size:,} words, {unknown:.2%} of the text unknown",
        "softmax": f"{words.samples:,} words sampled an update" if words.samples_from(size) else "full",
    }
    files = {_TOKENIZER_FILE: tokenizer.to_str(pretty=True)}
    network = NextWordNetwork(config)
    task.prepare(network)
    return Prepared(network, config.to_dict(), task, facts, files=files)


def documents_of(data: list[str], valid: list[str], ends: str) -> tuple[list[list[str]], list[list[str]]]:
    """Documents to learn from and to validate on: files of their own, or every twentieth document."""
    documents = list(text.read_documents(sources.expand(data), ends))
    if valid:
        return documents, list(text.read_documents(sources.expand(valid), ends))
    advice = "name validation text with --valid, or say where documents end with --documents"
    return held_out(documents, "document", advice)


NEXT_WORD = Recipe(
    task="next-word",
    settings=NextWordOptions,
    group="words",
    unit="tokens",
    prepare=_prepare,
    help="""Train a next-word model on text.

    Example: hiddenstate-models train next-word --data 'books/*.txt' --out runs/books
    """,
    reads="Text files to learn from, .parquet (FILE:COLUMN), globs, - for standard input, or "
    "hf:NAME[,CONF][:SPLIT][:COLUMN] of Hugging Face; repeatable.",
    holds_out="The same to validate on; without it, every twentieth document.",
)
