"""Scores of models that label text, beside labels found without a network."""

from collections.abc import Sequence

from hiddenstate_models.baselines.labels import BagOfWords, TagOfWord, most_frequent
from hiddenstate_models.data.entities import EntityCounts, marks_entities
from hiddenstate_models.data.labelled import LabelledText, TaggedSentence
from hiddenstate_models.labeller import Labeller
from hiddenstate_models.training.classification import at_last, texts_as_documents, words_of
from hiddenstate_models.training.labels import read_through
from hiddenstate_models.training.tagging import accuracy, find_tags, sentences_as_documents

Metrics = dict[str, float]
"""Metric -> number."""
Rows = dict[str, Metrics]
"""The model or a baseline -> its scores."""


def classification_scores(labeller: Labeller, texts: Sequence[LabelledText], training: Sequence[LabelledText]) -> Rows:
    """Share of texts whose label is right after the last word; of baselines too, with something to learn from."""
    rows = {"model": {"accuracy": _share(verdicts(labeller, texts), texts)}}
    if training:
        words = words_of(texts)
        bag = BagOfWords.fit(words_of(training), training, labeller.names)
        rows["bag of words and pairs"] = {"accuracy": _share(bag.predict(words), texts)}
        rows["most frequent label"] = {"accuracy": _share([most_frequent(training)] * len(texts), texts)}
    return rows


def tagging_scores(labeller: Labeller, sentences: Sequence[TaggedSentence], training: Sequence[TaggedSentence]) -> Rows:
    """Share of words tagged rightly; and where tags mark entities, precision, recall and F1 of whole entities."""
    rows = {"model": _tag_metrics(sentences, tags(labeller, sentences))}
    if training:
        baseline = TagOfWord.fit(training)
        rows["a word's most frequent tag"] = _tag_metrics(sentences, baseline.predict(sentences))
    return rows


def verdicts(labeller: Labeller, texts: Sequence[LabelledText]) -> list[str]:
    """Each text's most probable label after its last word."""
    documents = texts_as_documents(texts, labeller.lexicon, labeller.names)
    return [
        labeller.names[label]
        for _, logits, targets in read_through(labeller.network, documents)
        for label in at_last(logits, targets).argmax(dim=1).tolist()
    ]


def tags(labeller: Labeller, sentences: Sequence[TaggedSentence]) -> list[list[str]]:
    """The tags found for each sentence's words; those it comes with are not looked at."""
    documents = sentences_as_documents(sentences, labeller.lexicon, labeller.names, labeller.look_ahead)
    return find_tags(labeller.network, documents, labeller.names, labeller.look_ahead)


def _share(found: Sequence[str], texts: Sequence[LabelledText]) -> float:
    return sum(label == text.label for label, text in zip(found, texts, strict=True)) / len(texts)


def _tag_metrics(sentences: Sequence[TaggedSentence], found: Sequence[Sequence[str]]) -> Metrics:
    expected = [sentence.tags for sentence in sentences]
    metrics = {"accuracy": accuracy(expected, found)}
    if marks_entities(tag for one in expected for tag in one):
        counts = EntityCounts.of(expected, found)
        metrics = {"F1": counts.f1, "precision": counts.precision, "recall": counts.recall, **metrics}
    return metrics
