"""What learning to classify texts and to tag words have in common."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from hiddenstate_models.data import text
from hiddenstate_models.data.lexicon import SUFFIXES, Lexicon
from hiddenstate_models.data.sentences import PADDING, Sentences
from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.networks.labels import IGNORED, LabellingConfig, LabellingNetwork
from hiddenstate_models.training.cell_options import CellFlags, with_default
from hiddenstate_models.training.options import option

TOKENIZER_FILE = "tokenizer.json"

_EVALUATION_LANES = 64

Documents = list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
"""Tokens and targets of each sentence."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions(CellFlags):
    """Settings of the words and the network, for both tasks; each has defaults of its own."""

    vocabulary: int = option(50_000, "Words in the vocabulary, the most frequent ones.")
    rarest: int = option(1, "Words seen less often than this are left out of the vocabulary.")
    lowercase: bool = option(False, "Lower-case all words.")
    spelling: bool = option(
        True, "Tell unknown words apart by shape and suffix: `Johnson` counts as <Aa-son>, not as <unk>."
    )
    forget: float = option(0.0, "Share of words that training reads as if they were unknown.")
    forget_rare: float = option(0.5, "A word seen n times is read as unknown at the rate a / (a + n) too; this is a.")
    hidden: str = with_default("hidden", "200")
    embedding: int = option(100, "Size of the word embedding.")
    characters: int = option(50, "Features read from each word's characters, beside its embedding; 0: none.")
    dropout: float = with_default("dropout", 0.5)
    variational: bool = with_default("variational", True)

    def __post_init__(self) -> None:
        if not 0 <= self.forget < 1 or self.forget_rare < 0:
            raise ConfigurationError("forget must lie between 0 and 1 and forget-rare must not be negative")
        if self.vocabulary < 1:
            raise ConfigurationError(f"a vocabulary needs at least 1 word, not {self.vocabulary}")

    def fields(self, lexicon: Lexicon, labels: Sequence[str]) -> dict[str, Any]:
        """The network's configuration, but for what only one of the tasks has."""
        return {
            **self.cells(),
            "vocabulary_size": len(lexicon.words),
            "embedding_size": self.embedding,
            "characters": self.characters,
            "labels": len(labels),
        }

    def lexicon(self, sentences: Sequence[Sequence[str]], resumed: Path | None) -> Lexicon:
        """Learnt from the sentences' words, or that of the run which is resumed."""
        suffixes = SUFFIXES if self.spelling else ()
        if resumed is not None:
            tokenizer = Tokenizer.from_file(str(resumed / TOKENIZER_FILE))
            return Lexicon.of(tokenizer, lowercase=self.lowercase, suffixes=suffixes)
        return Lexicon.learn(
            (word for words in sentences for word in words),
            size=self.vocabulary,
            rarest=self.rarest,
            lowercase=self.lowercase,
            suffixes=suffixes,
        )

    def network(
        self, config: LabellingConfig, lexicon: Lexicon, sentences: Sequence[Sequence[str]]
    ) -> LabellingNetwork:
        """A fresh network that forgets words in training as often as these settings say."""
        network = LabellingNetwork(config, lexicon.words)
        tokens = np.concatenate([lexicon.tokens(words) for words in sentences])
        counts = torch.from_numpy(np.bincount(tokens, minlength=len(lexicon.words)))
        rates = self.forget + (1 - self.forget) * self.forget_rare / (self.forget_rare + counts.clamp(min=1))
        network.encoder.forget(torch.from_numpy(lexicon.in_place()), rates)
        return network


def numbered(labels: Sequence[str], names: Sequence[str]) -> npt.NDArray[np.int64]:
    """int64 [n]: places of labels among the names; IGNORED where it is none of them."""
    places = {name: i for i, name in enumerate(names)}
    return np.array([places.get(label, IGNORED) for label in labels], np.int64)


def labels_facts(lexicon: Lexicon, names: Sequence[str]) -> dict[str, object]:
    """For people."""
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    classes = sum(word.startswith("<") and word.endswith(">") for word in lexicon.words)
    return {"labels": shown, "vocabulary": f"{len(lexicon.words):,} words, {classes} of them for unknown ones"}


def tokenizer_file(lexicon: Lexicon, pattern: str) -> dict[str, str]:
    """tokenizer.json of a run."""
    tokenizer = text.word_tokenizer(lexicon.words, lowercase=lexicon.lowercase, pattern=pattern)
    return {TOKENIZER_FILE: tokenizer.to_str(pretty=True)}


@torch.no_grad()
def read_through(network: LabellingNetwork, documents: Documents) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Reads whole sentences in batches, in their order: tokens, logits [T, B, labels] and targets [T, B].

    Lanes left over in the last batch are padding.
    """
    device = next(network.parameters()).device
    for chunk in Sentences(documents, lanes=_EVALUATION_LANES, ignored=IGNORED).epoch(0):
        tokens = torch.from_numpy(chunk.inputs).to(device)
        logits, _ = network(tokens, network.initial_state(tokens.shape[1]))
        used = (tokens[0] != PADDING).nonzero().squeeze(1)
        yield tokens[:, used], logits[:, used], torch.from_numpy(chunk.targets).to(device)[:, used]
