"""Learning to label every word of a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.data import sources
from hiddenstate_models.data.entities import EntityCounts, marks_entities
from hiddenstate_models.data.labelled import TAGGED_WORD_PATTERN, TaggedSentence, names_of, read_tagged
from hiddenstate_models.data.lanes import Chunk
from hiddenstate_models.data.lexicon import Lexicon
from hiddenstate_models.data.sentences import PADDING, Sentences
from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.networks.labels import IGNORED, LabellingConfig, LabellingNetwork
from hiddenstate_models.training.holding_out import held_out
from hiddenstate_models.training.labels import (
    Documents,
    LabelOptions,
    labels_facts,
    numbered,
    read_through,
    tokenizer_file,
)
from hiddenstate_models.training.options import TrainingOptions, option
from hiddenstate_models.training.recipe import Prepared, Recipe, Told


@dataclass(frozen=True, kw_only=True)
class TaggingOptions(LabelOptions):
    """Settings of a run that learns to tag words."""

    look_ahead: int = option(1, "Words that are read after a word before it is labelled.")
    bidirectional: bool = option(False, "Read sentences backwards too; for offline use, not for serving.")
    teacher_forcing: bool = option(
        False,
        "Train a Jordan network on the right labels of the words before in place of its outputs, all steps at once "
        "(Williams & Zipser, 1989); used, it reads its own outputs.",
    )
    crf: bool = option(False, "Label whole sentences by a conditional random field; for offline use, not for serving.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.look_ahead < 0:
            raise ConfigurationError(f"look_ahead must be at least 0, not {self.look_ahead}")


class TaggingTask:
    """A tag for every word; scored by the F1 of entities, or where tags mark none by accuracy."""

    def __init__(
        self,
        training: Documents,
        validation: Sequence[TaggedSentence],
        lexicon: Lexicon,
        names: Sequence[str],
        options: TrainingOptions,
        tagging: TaggingOptions,
    ) -> None:
        self.lanes = Sentences(training, lanes=options.lanes, ignored=IGNORED, seed=options.seed)
        self._sentences = validation
        self._validation = sentences_as_documents(validation, lexicon, names, tagging.look_ahead)
        self._names = names
        self._look_ahead = tagging.look_ahead

    def loss(self, network: nn.Module, outputs: Tensor, targets: Tensor, _epoch: int) -> Tensor:
        """Summed negative log-likelihood in nats of targets [T, B] given logits [T, B, labels]."""
        return tags_loss(cast(LabellingNetwork, network), outputs, targets)

    def count(self, chunk: Chunk) -> int:
        """Words to tag."""
        return int((chunk.targets != IGNORED).sum())

    def details(self, _loss: float) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean loss in nats a word, and what F1 or accuracy lack of 1."""
        labelling = cast(LabellingNetwork, network)
        loss, count = 0.0, 0
        for _, logits, targets in read_through(labelling, self._validation):
            loss += float(tags_loss(labelling, logits, targets))
            count += int((targets != IGNORED).sum())
        found = find_tags(labelling, self._validation, self._names, self._look_ahead)
        expected = [sentence.tags for sentence in self._sentences]
        score = EntityCounts.of(expected, found).f1 if marks_entities(self._names) else accuracy(expected, found)
        return {"loss": loss / count, "error": 1 - score}


def tags_loss(network: LabellingNetwork, logits: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of targets [T, B] under logits [T, B, labels], IGNORED ones apart."""
    if network.crf is None:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    emissions, labels, lengths = _compact(logits, targets)
    return network.crf.loss(emissions, labels, lengths)


def find_tags(
    network: LabellingNetwork, documents: Documents, names: Sequence[str], look_ahead: int
) -> list[list[str]]:
    """The most probable tags of every sentence's words."""
    found: list[list[str]] = []
    for tokens, logits, _ in read_through(network, documents):
        lengths = (tokens != PADDING).sum(dim=0) - 1 - look_ahead
        emissions = logits[1 + look_ahead :]
        tags = emissions.argmax(dim=2) if network.crf is None else network.crf.decode(emissions, lengths)
        for lane, length in enumerate(lengths.tolist()):
            found.append([names[label] for label in tags[:length, lane].tolist()])
    return found


def accuracy(expected: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    """Share of words tagged rightly."""
    right = sum(a == b for one, other in zip(expected, found, strict=True) for a, b in zip(one, other, strict=True))
    return right / sum(map(len, expected))


def sentences_as_documents(
    sentences: Sequence[TaggedSentence], lexicon: Lexicon, names: Sequence[str], look_ahead: int
) -> Documents:
    """Sentences as tokens between the end token and, where the model looks ahead, so many more; tags that much later.

    Tags that are none of the names are IGNORED.
    """
    after = np.full(look_ahead, lexicon.end)
    before = np.full(1 + look_ahead, IGNORED)
    return [
        (
            np.concatenate([[lexicon.end], lexicon.tokens(sentence.words), after]),
            np.concatenate([before, numbered(sentence.tags, names)]),
        )
        for sentence in sentences
    ]


def _compact(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Emissions, labels and lengths of the sentences that have targets, from the first step on that has one."""
    known = targets != IGNORED
    used = known.any(dim=0)
    first = int(known.any(dim=1).nonzero()[0])
    return logits[first:, used], targets[first:, used], known[:, used].sum(dim=0)


def _prepare(told: Told[TaggingOptions], resumed: Path | None) -> Prepared:
    settings = told.settings
    training, validation = sentences_of(told.data, told.valid)
    names = names_of(tag for sentence in training for tag in sentence.tags)
    words = [sentence.words for sentence in training]
    lexicon = settings.lexicon(words, resumed)
    config = LabellingConfig(
        task="tagging",
        bidirectional=settings.bidirectional,
        crf=settings.crf,
        teacher_forcing=settings.teacher_forcing,
        **settings.fields(lexicon, names),
    )
    documents = sentences_as_documents(training, lexicon, names, settings.look_ahead)
    task = TaggingTask(documents, validation, lexicon, names, told.training, settings)
    network = settings.network(config, lexicon, words)
    constrain(network, names)
    facts = {
        "sentences": len(training),
        "words an epoch": sum(map(len, words)),
        "validation sentences": len(validation),
        **labels_facts(lexicon, names),
    }
    return Prepared(
        network,
        config.to_dict(),
        task,
        facts,
        read={"labels": list(names)},
        files=tokenizer_file(lexicon, TAGGED_WORD_PATTERN),
    )


def sentences_of(data: list[str], valid: list[str]) -> tuple[list[TaggedSentence], list[TaggedSentence]]:
    """Sentences to learn from and to validate on: of files of their own, or every twentieth sentence."""
    sentences = read_tagged(sources.expand(data))
    if valid:
        return sentences, read_tagged(sources.expand(valid))
    return held_out(sentences, "sentence", "name validation files with --valid")


def constrain(network: LabellingNetwork, names: Sequence[str]) -> None:
    """Has a conditional random field find nothing but whole entities, where tags mark some."""
    if network.crf is not None and marks_entities(names):
        network.crf.constrain(names)


TAGGING = Recipe(
    task="tagging",
    settings=TaggingOptions,
    group="labels",
    unit="words",
    prepare=_prepare,
    help="""Train a model that labels every word of a sentence, such as the names in it.

    Example: hiddenstate-models train tagging --data train.conll --valid dev.conll --look-ahead 2 --out runs/names
    """,
    reads="Files with a word a line, its tag last, blank lines between sentences (CoNLL), .parquet with lists of "
    "tokens and tags, globs, - (standard input), or hf:NAME[,CONF][:SPLIT][:TOKENS,TAGS] of Hugging Face; repeatable.",
    holds_out="The same to validate on; without it, every 20th sentence.",
)
