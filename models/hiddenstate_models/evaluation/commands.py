"""What `hiddenstate-models evaluate` does: load, score beside baselines, show, and keep."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from hiddenstate_models.baselines.kneser_ney import KneserNey
from hiddenstate_models.baselines.notes import NoteBaseline
from hiddenstate_models.bundle import CONFIG_FILE, TOKENIZER_FILE, Bundle
from hiddenstate_models.data import sources, text
from hiddenstate_models.data.labelled import Side
from hiddenstate_models.data.music import read_pieces
from hiddenstate_models.data.series import Layout, Series, read_series
from hiddenstate_models.data.sources import STANDARD_INPUT, File, Source
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
from hiddenstate_models.training.run import RunRecord, fit_weights
from hiddenstate_models.training.series_options import names

Scores = dict[str, dict[str, dict[str, float]]]
"""Split -> row (the model, a baseline) -> metric -> number."""

_Source = TypeVar("_Source", bound=Source)

_SHOWN = 20
"""A file with more series than this is shown as their mean."""


def evaluate(source: Path, data: Sequence[str], baseline_data: Sequence[str], *, as_json: bool) -> Scores:
    """Scores a run's best weights or a bundle on each file of `data`, and on all of them together.

    Raises:
        DataError: source is neither, or there is nothing to evaluate on.
    """
    record = RunRecord.load(source) if (source / RUN_FILE).exists() else None
    if record is None and not (source / CONFIG_FILE).exists():
        raise DataError(f"{source} is neither a training run ({RUN_FILE}) nor a bundle ({CONFIG_FILE})")
    task = record.task if record else Bundle.load(source).config.task
    if record is not None:
        data = data or _kept(record.data["validation"])
        baseline_data = baseline_data or _kept(record.data["training"])
    if not data:
        raise DataError("nothing to evaluate on: name files with --data")
    console = Console(stderr=as_json)
    with console.status("evaluating ..."):
        if task == "next-word":
            scores = _evaluate_words(source, record, sources.expand(data), baseline_data)
        elif task == "forecasting":
            scores = _evaluate_forecasts(source, record, sources.expand(data))
        elif task in LABEL_TASKS:
            scores = _evaluate_labels(source, record, sources.expand(data), baseline_data)
        elif task == "music":
            scores = _evaluate_music(source, record, data, baseline_data)
        else:
            scores = _evaluate_values(source, record, sources.expand(data))
    if record is not None:
        (source / SCORES_FILE).write_text(json.dumps(scores, indent=2) + "\n")
    if as_json:
        Console().print_json(data=scores)
    else:
        for split, rows in scores.items():
            console.print(_table(split, rows))
    return scores


def _evaluate_words(
    source: Path, record: RunRecord | None, data: Sequence[Source], baseline_data: Sequence[str]
) -> Scores:
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
    baseline: KneserNey | None = None
    if baseline_data:
        training = text.encode(tokenizer, text.read_documents(sources.expand(baseline_data), ends))
        baseline = KneserNey.fit(training, tokenizer.get_vocab_size())
    scores: Scores = {}
    for split, parts in _splits(data).items():
        corpus = text.encode(tokenizer, text.read_documents(parts, ends))
        scores[split] = {"model": network_scores(network, corpus)}
        if baseline is not None:
            scores[split]["Kneser-Ney 5-gram"] = baseline_scores(baseline, corpus)
    return scores


def _evaluate_music(
    source: Path, record: RunRecord | None, data: Sequence[str], baseline_data: Sequence[str]
) -> Scores:
    frames_per_beat = record.data["options"]["frames_per_beat"] if record else 2
    fields = record.network if record else Bundle.load(source).config.network
    network = MusicNetwork(MusicConfig.from_dict(fields))
    fit_weights(network, load_weights(source), source)
    baselines: dict[str, NoteBaseline] = {}
    if baseline_data:
        training = read_pieces(sources.files(baseline_data), "train", frames_per_beat=frames_per_beat)
        baselines = {
            "note frequencies": NoteBaseline.frequencies(training),
            "last frame again": NoteBaseline.repetition(training),
        }
    scores: Scores = {}
    for split, parts in _splits([File(path) for path in sources.files(data)]).items():
        pieces = read_pieces([part.path for part in parts], "valid", frames_per_beat=frames_per_beat)
        scores[split] = {"model": music.network_scores(network, pieces)}
        scores[split] |= {name: music.baseline_scores(baseline, pieces) for name, baseline in baselines.items()}
    return scores


def _evaluate_labels(
    source: Path, record: RunRecord | None, data: Sequence[Source], baseline_data: Sequence[str]
) -> Scores:
    labeller = load_labeller(source)
    learnt_from = sources.expand(baseline_data)
    if labeller.network.config.task == "tagging":
        return {split: tagging_scores(labeller, parts, learnt_from) for split, parts in _splits(data).items()}
    side: Side = record.data["options"]["label_column"] if record else "auto"
    return {split: classification_scores(labeller, parts, learnt_from, side) for split, parts in _splits(data).items()}


def _kept(data: Sequence[str]) -> list[str]:
    """What a run was told to read, but for standard input, which is gone."""
    return [one for one in data if one != STANDARD_INPUT]


def _splits(data: Sequence[_Source]) -> dict[str, list[_Source]]:
    """Every source by itself, and all together where there are several; by short names where these differ."""
    short = {one.label for one in data}
    splits = {one.label if len(short) == len(data) else one.name: [one] for one in data}
    if len(data) > 1:
        splits["all together"] = list(data)
    return splits


def _evaluate_values(source: Path, record: RunRecord | None, data: Sequence[Source]) -> Scores:
    """Every series by itself, or the mean over the series of a file that has many; and the mean over all."""
    fields = record.network if record else Bundle.load(source).config.network
    network = NextValueNetwork(NextValueConfig.from_dict(fields))
    fit_weights(network, load_weights(source), source)
    scores: Scores = {}
    every: Scores = {}
    for part in data:
        one = value_scores(network, _series(source, record, [part], network.config.columns))
        every |= one
        scores |= one if len(one) <= _SHOWN else {f"{part.label}, mean of {len(one)} series": averages(one)}
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
