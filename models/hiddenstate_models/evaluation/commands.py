"""What `hiddenstate-models evaluate` does: load, score beside baselines, show, and keep."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from hiddenstate_models.baselines.kneser_ney import KneserNey
from hiddenstate_models.baselines.notes import NoteBaseline
from hiddenstate_models.bundle import CONFIG_FILE, TOKENIZER_FILE, Bundle
from hiddenstate_models.data import sources, text
from hiddenstate_models.data.labelled import LabelledText, Side, read_tagged, read_texts
from hiddenstate_models.data.music import Part, Piece, read_pieces
from hiddenstate_models.data.series import Layout, Series, read_series
from hiddenstate_models.data.sources import STANDARD_INPUT, Source
from hiddenstate_models.errors import DataError
from hiddenstate_models.evaluation import music
from hiddenstate_models.evaluation.forecasting import forecast_scores
from hiddenstate_models.evaluation.labels import classification_scores, tagging_scores
from hiddenstate_models.evaluation.sources import LABEL_TASKS, load_labeller, load_weights
from hiddenstate_models.evaluation.values import averages, value_scores
from hiddenstate_models.evaluation.words import baseline_scores, network_scores
from hiddenstate_models.export.sources import RUN_FILE, SCORES_FILE
from hiddenstate_models.networks.forecasting import ForecastingConfig, ForecastingNetwork
from hiddenstate_models.networks.music import MusicConfig, MusicNetwork
from hiddenstate_models.networks.values import NextValueConfig, NextValueNetwork
from hiddenstate_models.networks.words import NextWordConfig, NextWordNetwork
from hiddenstate_models.training.classification import texts_of
from hiddenstate_models.training.music import pieces_of
from hiddenstate_models.training.next_value import NextValueOptions, series_of
from hiddenstate_models.training.next_word import documents_of
from hiddenstate_models.training.run import RunRecord, as_saved, fit_weights
from hiddenstate_models.training.series_options import names
from hiddenstate_models.training.tagging import sentences_of

Scores = dict[str, dict[str, dict[str, float]]]
"""Split -> row (the model, a baseline) -> metric -> number."""

_Item = TypeVar("_Item")

_HELD_OUT = "held out"
_SHOWN = 20
"""A file with more series than this is shown as their mean."""


def evaluate(source: Path, data: Sequence[str], baseline_data: Sequence[str], *, as_json: bool) -> Scores:
    """Scores a run's best weights or a bundle on each file of `data`, and on all of them together.

    Without `data` a run is scored on what it was validated on, be it a part of what it was given to learn from.

    Raises:
        DataError: source is neither, or there is nothing to evaluate on.
    """
    record = RunRecord.load(source) if (source / RUN_FILE).exists() else None
    if record is None and not (source / CONFIG_FILE).exists():
        raise DataError(f"{source} is neither a training run ({RUN_FILE}) nor a bundle ({CONFIG_FILE})")
    task = record.task if record else Bundle.load(source).config.task
    told = list(record.data["training"]) if record else []
    wanted = _Wanted(list(data), list(baseline_data), told if STANDARD_INPUT not in told else [])
    if record is not None and not data:
        wanted = replace(wanted, data=_kept(record.data["validation"]))
    if not wanted.data and not wanted.learnt_from:
        raise DataError("nothing to evaluate on: name files with --data")
    console = Console(stderr=as_json)
    with console.status("evaluating ..."):
        if task == "next-word":
            scores = _evaluate_words(source, record, wanted)
        elif task == "forecasting":
            scores = _evaluate_forecasts(source, record, sources.expand(wanted.data))
        elif task in LABEL_TASKS:
            scores = _evaluate_labels(source, record, wanted)
        elif task == "music":
            scores = _evaluate_music(source, record, wanted)
        else:
            scores = _evaluate_values(source, record, wanted)
    if record is not None:
        (source / SCORES_FILE).write_text(json.dumps(scores, indent=2) + "\n")
    if as_json:
        Console().print_json(data=scores)
    else:
        for split, rows in scores.items():
            console.print(_table(split, rows))
    return scores


_Reader: TypeAlias = Callable[[Sequence[Source]], Iterable[_Item]]
_Split: TypeAlias = Callable[[list[str], list[str]], tuple[Sequence[_Item], Sequence[_Item]]]
"""What is learnt from and what is held out, of data and validation data as they were typed."""


@dataclass(frozen=True)
class _Wanted:
    """What to evaluate on."""

    data: list[str]
    """None: what was held out of `learnt_from`."""
    baseline_data: list[str]
    learnt_from: list[str]
    """What a run was given to learn from, where that can be read again."""

    def parts(self, read: _Reader[_Item], split: _Split[_Item]) -> dict[str, Callable[[], Iterable[_Item]]]:
        """By name, how to read each part that is evaluated on."""
        if not self.data:
            _, held = split(self.learnt_from, [])
            return {_HELD_OUT: lambda: held}
        return {name: partial(read, group) for name, group in _splits(sources.expand(self.data)).items()}

    def training(self, read: _Reader[_Item], split: _Split[_Item]) -> Iterable[_Item]:
        """What baselines learn from, perhaps nothing."""
        if self.baseline_data or self.data or not self.learnt_from:
            return read(sources.expand(self.baseline_data or self.learnt_from))
        return split(self.learnt_from, [])[0]


def _evaluate_words(source: Path, record: RunRecord | None, wanted: _Wanted) -> Scores:
    ends = record.data["options"]["documents"] if record else "auto"
    fields = record.network if record else Bundle.load(source).config.network
    network = NextWordNetwork(NextWordConfig.from_dict(fields))
    fit_weights(network, load_weights(source), source)
    tokenizer = Tokenizer.from_file(str(source / TOKENIZER_FILE))
    if tokenizer.get_vocab_size() != network.config.vocabulary_size:
        raise DataError(
            f"{source / TOKENIZER_FILE} holds {tokenizer.get_vocab_size():,} words, and the model predicts "
            f"{network.config.vocabulary_size:,}: put the file back that was saved with the model"
        )

    def read(found: Sequence[Source]) -> Iterable[list[str]]:
        return text.read_documents(found, ends)

    def split(data: list[str], valid: list[str]) -> tuple[list[list[str]], list[list[str]]]:
        return documents_of(data, valid, ends)

    training = text.encode_in_parts(tokenizer, wanted.training(read, split), sys.maxsize)
    baselines = [KneserNey.fit(corpus, tokenizer.get_vocab_size()) for corpus in training]
    scores: Scores = {}
    for name, documents in wanted.parts(read, split).items():
        scores[name] = {"model": network_scores(network, text.encode_in_parts(tokenizer, documents()))}
        for baseline in baselines:
            scores[name]["Kneser-Ney 5-gram"] = baseline_scores(baseline, text.encode_in_parts(tokenizer, documents()))
    return scores


def _evaluate_music(source: Path, record: RunRecord | None, wanted: _Wanted) -> Scores:
    frames_per_beat = record.data["options"]["frames_per_beat"] if record else 2
    fields = record.network if record else Bundle.load(source).config.network
    network = MusicNetwork(MusicConfig.from_dict(fields))
    fit_weights(network, load_weights(source), source)

    def read(found: Sequence[Source], part: Part) -> list[Piece]:
        return read_pieces(sources.paths_of(found), part, frames_per_beat=frames_per_beat)

    def split(data: list[str], valid: list[str]) -> tuple[list[Piece], list[Piece]]:
        return pieces_of(data, valid, frames_per_beat)

    training = list(wanted.training(partial(read, part="train"), split))
    baselines = (
        {
            "note frequencies": NoteBaseline.frequencies(training),
            "last frame again": NoteBaseline.repetition(training),
        }
        if training
        else {}
    )
    scores: Scores = {}
    for name, pieces in wanted.parts(partial(read, part="valid"), split).items():
        scores[name] = {"model": music.network_scores(network, list(pieces()))}
        scores[name] |= {row: music.baseline_scores(one, list(pieces())) for row, one in baselines.items()}
    return scores


def _evaluate_labels(source: Path, record: RunRecord | None, wanted: _Wanted) -> Scores:
    labeller = load_labeller(source)
    if labeller.network.config.task == "tagging":
        tagged = list(wanted.training(read_tagged, sentences_of))
        parts = wanted.parts(read_tagged, sentences_of)
        return {name: tagging_scores(labeller, list(sentences()), tagged) for name, sentences in parts.items()}
    side: Side = record.data["options"]["label_column"] if record else "auto"

    def read(found: Sequence[Source]) -> list[LabelledText]:
        return read_texts(found, side)

    def split(data: list[str], valid: list[str]) -> tuple[list[LabelledText], list[LabelledText]]:
        return texts_of(data, valid, side)

    training = list(wanted.training(read, split))
    texts = wanted.parts(read, split)
    return {name: classification_scores(labeller, list(some()), training) for name, some in texts.items()}


def _kept(data: Sequence[str]) -> list[str]:
    """What a run was told to read, but for standard input, which is gone."""
    return [one for one in data if one != STANDARD_INPUT]


def _splits(data: Sequence[Source]) -> dict[str, list[Source]]:
    """Every source by itself, and all together where there are several; by short names where these differ."""
    short = {one.label for one in data}
    splits = {one.label if len(short) == len(data) else one.name: [one] for one in data}
    if len(data) > 1:
        splits["all together"] = list(data)
    return splits


def _evaluate_values(source: Path, record: RunRecord | None, wanted: _Wanted) -> Scores:
    """Every series by itself, or the mean over the series of a file that has many; and the mean over all."""
    fields = record.network if record else Bundle.load(source).config.network
    network = NextValueNetwork(NextValueConfig.from_dict(fields))
    fit_weights(network, load_weights(source), source)
    if wanted.data:
        found = [
            (part.label, _series(source, record, [part], network.config.columns))
            for part in sources.expand(wanted.data)
        ]
    else:
        assert record is not None
        options = as_saved(NextValueOptions, record.data["options"], source)
        found = [(_HELD_OUT, series_of(wanted.learnt_from, [], options)[1])]
    scores: Scores = {}
    every: Scores = {}
    for name, series in found:
        one = value_scores(network, series)
        every |= one
        scores |= one if len(one) <= _SHOWN else {f"{name}, mean of {len(one)} series": averages(one)}
    if len(every) > 1:
        scores["mean of all series"] = averages(every)
    return scores


def _evaluate_forecasts(source: Path, record: RunRecord | None, data: Sequence[Source]) -> Scores:
    """The ends of all series of each source, as many windows of them as were validated on."""
    fields = record.network if record else Bundle.load(source).config.network
    network = ForecastingNetwork(ForecastingConfig.from_dict(fields))
    fit_weights(network, load_weights(source), source)
    windows = record.data["options"]["windows"] if record else 1
    return {
        split: forecast_scores(network, _series(source, record, parts, network.config.columns), windows)
        for split, parts in _splits(data).items()
    }


def _series(source: Path, record: RunRecord | None, data: Sequence[Source], width: int) -> list[Series]:
    """The series of sources with the columns that the network reads, of which there are `width`."""
    columns: Sequence[str] = names(record.data["options"]["columns"]) if record else ()
    layout: Layout = record.data["options"]["layout"] if record else "auto"
    if width > 1:
        columns, layout = record.data["columns"] if record else _columns(source), "joint"
    series: list[Series] = []
    for part in data:
        found = read_series([part], columns=columns, layout=layout)
        if len(found[0].columns) != width:
            raise DataError(f"{part.name} lacks some of the columns {', '.join(columns)} that the model reads")
        series += found
    return series


def _columns(source: Path) -> Sequence[str]:
    values = Bundle.load(source).config.values
    return values.columns if values else ()


def _table(split: str, rows: dict[str, dict[str, Any]]) -> Table:
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    table = Table("", *metrics, title=split, title_justify="left", title_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in rows.items():
        table.add_row(name, *(_cell(metric, row.get(metric)) for metric in metrics))
    return table


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if metric.endswith(("accuracy", "coverage", "F1", "precision", "recall")) else f"{value:.4g}"
