"""What `hiddenstate-models evaluate` does: load, score beside baselines, show, and keep."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from hiddenstate_models.baselines.kneser_ney import KneserNey
from hiddenstate_models.baselines.notes import NoteBaseline
from hiddenstate_models.bundle import CONFIG_FILE, TOKENIZER_FILE, Bundle
from hiddenstate_models.data import text
from hiddenstate_models.data.labelled import Side
from hiddenstate_models.data.music import read_pieces
from hiddenstate_models.data.series import Layout, Series, read_series
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
        data = data or record.data["validation"]
        baseline_data = baseline_data or record.data["training"]
    if not data:
        raise DataError("nothing to evaluate on: name files with --data")
    console = Console(stderr=as_json)
    with console.status("evaluating ..."):
        if task == "next-word":
            scores = _evaluate_words(source, record, text.expand(data), baseline_data)
        elif task == "forecasting":
            scores = _evaluate_forecasts(source, record, text.expand(data))
        elif task in LABEL_TASKS:
            scores = _evaluate_labels(source, record, text.expand(data), baseline_data)
        elif task == "music":
            scores = _evaluate_music(source, record, text.expand(data), baseline_data)
        else:
            scores = _evaluate_values(source, record, text.expand(data))
    if record is not None:
        (source / SCORES_FILE).write_text(json.dumps(scores, indent=2) + "\n")
    if as_json:
        Console().print_json(data=scores)
    else:
        for split, rows in scores.items():
            console.print(_table(split, rows))
    return scores


def _evaluate_words(
    source: Path, record: RunRecord | None, files: Sequence[Path], baseline_data: Sequence[str]
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
        training = text.encode(tokenizer, text.read_documents(text.expand(baseline_data), ends))
        baseline = KneserNey.fit(training, tokenizer.get_vocab_size())
    scores: Scores = {}
    for split, paths in _splits(files).items():
        corpus = text.encode(tokenizer, text.read_documents(paths, ends))
        scores[split] = {"model": network_scores(network, corpus)}
        if baseline is not None:
            scores[split]["Kneser-Ney 5-gram"] = baseline_scores(baseline, corpus)
    return scores


def _evaluate_music(
    source: Path, record: RunRecord | None, files: Sequence[Path], baseline_data: Sequence[str]
) -> Scores:
    frames_per_beat = record.data["options"]["frames_per_beat"] if record else 2
    fields = record.network if record else Bundle.load(source).config.network
    network = MusicNetwork(MusicConfig.from_dict(fields))
    fit_weights(network, load_weights(source), source)
    baselines: dict[str, NoteBaseline] = {}
    if baseline_data:
        training = read_pieces(text.expand(baseline_data), "train", frames_per_beat=frames_per_beat)
        baselines = {
            "note frequencies": NoteBaseline.frequencies(training),
            "last frame again": NoteBaseline.repetition(training),
        }
    scores: Scores = {}
    for split, paths in _splits(files).items():
        pieces = read_pieces(paths, "valid", frames_per_beat=frames_per_beat)
        scores[split] = {"model": music.network_scores(network, pieces)}
        scores[split] |= {name: music.baseline_scores(baseline, pieces) for name, baseline in baselines.items()}
    return scores


def _evaluate_labels(
    source: Path, record: RunRecord | None, files: Sequence[Path], baseline_data: Sequence[str]
) -> Scores:
    labeller = load_labeller(source)
    learnt_from = text.expand(baseline_data)
    if labeller.network.config.task == "tagging":
        return {split: tagging_scores(labeller, paths, learnt_from) for split, paths in _splits(files).items()}
    side: Side = record.data["options"]["label_column"] if record else "auto"
    return {split: classification_scores(labeller, paths, learnt_from, side) for split, paths in _splits(files).items()}


def _splits(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Every file by itself, and all together where there are several."""
    splits = {path.name: [path] for path in files}
    if len(files) > 1:
        splits["all together"] = list(files)
    return splits


def _evaluate_values(source: Path, record: RunRecord | None, files: Sequence[Path]) -> Scores:
    """Every series by itself, or the mean over the series of a file that has many; and the mean over all."""
    fields = record.network if record else Bundle.load(source).config.network
    network = NextValueNetwork(NextValueConfig.from_dict(fields))
    fit_weights(network, load_weights(source), source)
    scores: Scores = {}
    every: Scores = {}
    for path in files:
        one = value_scores(network, _series(source, record, [path], network.config.columns))
        every |= one
        scores |= one if len(one) <= _SHOWN else {f"{path.name}, mean of {len(one)} series": averages(one)}
    if len(every) > 1:
        scores["mean of all series"] = averages(every)
    return scores


def _evaluate_forecasts(source: Path, record: RunRecord | None, files: Sequence[Path]) -> Scores:
    """The ends of all series of each file, as many windows of them as were validated on."""
    fields = record.network if record else Bundle.load(source).config.network
    network = ForecastingNetwork(ForecastingConfig.from_dict(fields))
    fit_weights(network, load_weights(source), source)
    windows = record.data["options"]["windows"] if record else 1
    return {
        split: forecast_scores(network, _series(source, record, paths, network.config.columns), windows)
        for split, paths in _splits(files).items()
    }


def _series(source: Path, record: RunRecord | None, files: Sequence[Path], width: int) -> list[Series]:
    """The series of files with the columns that the network reads, of which there are `width`."""
    columns: Sequence[str] = names(record.data["options"]["columns"]) if record else ()
    layout: Layout = record.data["options"]["layout"] if record else "auto"
    if width > 1:
        columns, layout = record.data["columns"] if record else _columns(source), "joint"
    series: list[Series] = []
    for path in files:
        found = read_series([path], columns=columns, layout=layout)
        if len(found[0].columns) != width:
            raise DataError(f"{path} lacks some of the columns {', '.join(columns)} that the model reads")
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
