"""Learning to say what a text is, after every word."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.data import sources, text
from hiddenstate_models.data.labelled import LabelledText, Side, names_of, read_texts
from hiddenstate_models.data.lanes import Chunk
from hiddenstate_models.data.lexicon import Lexicon
from hiddenstate_models.data.sentences import Sentences
from hiddenstate_models.errors import DataError
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
class ClassificationOptions(LabelOptions):
    """Settings of a run that learns to classify texts."""

    lowercase: bool = option(True, "Lower-case all words.")
    forget: float = option(0.1, "Share of words that training reads as if they were unknown.")
    label_column: Side = option("auto", "Which side of the tab the label stands on; auto: that with fewer entries.")
    pooling: Literal["last", "max", "mean"] = option(
        "max", "What is labelled: the last output, or the maximum or the mean of all outputs so far."
    )
    every_step: float = option(
        0.2, "Weight of the verdicts after every word, beside that after the last one, which counts 1."
    )


class ClassificationTask:
    """A text's label, above all after its last word; scored by accuracy there."""

    def __init__(
        self,
        training: Documents,
        validation: Documents,
        options: TrainingOptions,
        classification: ClassificationOptions,
    ) -> None:
        self.lanes = Sentences(training, lanes=options.lanes, ignored=IGNORED, seed=options.seed)
        self._validation = validation
        self._every_step = classification.every_step

    def loss(self, _network: nn.Module, outputs: Tensor, targets: Tensor, _epoch: int) -> Tensor:
        """Summed cross-entropy in nats of targets [T, B] (each text's all the same), given logits [T, B, labels]."""
        losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        losses, counts = losses.view(targets.shape), (targets != IGNORED).sum(dim=0)
        last = at_last(losses, targets)
        every = losses.sum(dim=0) / counts.clamp(min=1)
        return (last + self._every_step * every)[counts > 0].sum()

    def count(self, chunk: Chunk) -> int:
        """Texts to classify."""
        return int((chunk.targets[0] != IGNORED).sum())

    def details(self, _loss: float) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean loss in nats and share of wrong verdicts after the last word."""
        loss, right = 0.0, 0
        for _, logits, targets in read_through(cast(LabellingNetwork, network), self._validation):
            verdicts, labels = at_last(logits, targets), targets[0]
            loss += float(F.cross_entropy(verdicts, labels, reduction="sum"))
            right += int((verdicts.argmax(dim=1) == labels).sum())
        count = len(self._validation)
        return {"loss": loss / count, "error": 1 - right / count}


def at_last(steps: Tensor, targets: Tensor) -> Tensor:
    """[B, ...]: what steps [T, B, ...] hold at each text's last step with a target."""
    places = torch.arange(len(targets), device=targets.device).unsqueeze(1)
    last = places.masked_fill(targets == IGNORED, 0).amax(dim=0)
    return steps[last, torch.arange(targets.shape[1], device=steps.device)]


def words_of(texts: Sequence[LabelledText]) -> list[list[str]]:
    """Every text's words."""
    pattern = re.compile(text.WORD_PATTERN)
    return [pattern.findall(one.text) for one in texts]


def texts_as_documents(texts: Sequence[LabelledText], lexicon: Lexicon, names: Sequence[str]) -> Documents:
    """Texts as tokens, after the end token, and the label at every step.

    Raises:
        DataError: a label is none of the names.
    """
    labels = numbered([one.label for one in texts], names)
    if (labels == IGNORED).any():
        wrong = texts[int((labels == IGNORED).argmax())]
        raise DataError(f"the label {wrong.label!r} is none of those learnt: {', '.join(names)}")
    tokens = [np.concatenate([[lexicon.end], lexicon.tokens(words)]) for words in words_of(texts)]
    return [(one, np.full(len(one), label)) for one, label in zip(tokens, labels, strict=True)]


def _prepare(told: Told[ClassificationOptions], resumed: Path | None) -> Prepared:
    settings = told.settings
    training, validation = texts_of(told.data, told.valid, settings.label_column)
    names = names_of(one.label for one in training)
    words = words_of(training)
    lexicon = settings.lexicon(words, resumed)
    config = LabellingConfig(task="classification", pooling=settings.pooling, **settings.fields(lexicon, names))
    documents = texts_as_documents(training, lexicon, names), texts_as_documents(validation, lexicon, names)
    task = ClassificationTask(*documents, told.training, settings)
    facts = {
        "texts": len(training),
        "words an epoch": task.lanes.steps_per_epoch,
        "validation texts": len(validation),
        **labels_facts(lexicon, names),
    }
    return Prepared(
        settings.network(config, lexicon, words),
        config.to_dict(),
        task,
        facts,
        read={"labels": list(names)},
        files=tokenizer_file(lexicon, text.WORD_PATTERN),
    )


def texts_of(data: list[str], valid: list[str], label: Side) -> tuple[list[LabelledText], list[LabelledText]]:
    """Texts to learn from and to validate on: of files of their own, or every twentieth text."""
    texts = read_texts(sources.expand(data), label)
    if valid:
        return texts, read_texts(sources.expand(valid), label)
    return held_out(texts, "text", "name validation files with --valid")


CLASSIFICATION = Recipe(
    task="classification",
    settings=ClassificationOptions,
    group="labels",
    unit="texts",
    prepare=_prepare,
    help="""Train a model that says what a text is, such as its sentiment, after every word.

    Example: hiddenstate-models train classification --data reviews.tsv --out runs/reviews
    """,
    reads="Files with a label and a text a line, a tab between them, .csv and .parquet (FILE:TEXT,LABEL for columns), "
    "globs, - for standard input, or hf:NAME[,CONF][:SPLIT][:TEXT,LABEL] of Hugging Face; repeatable.",
    holds_out="The same to validate on; without it, every 20th text.",
)
