"""What stops a run says what happened, where, and what to do; what was saved before is kept."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.test_training import OPTIONS, WORDS, documents, network_of, trainer, write_corpus
from typer.testing import CliRunner

from hiddenstate_models.cli.app import app
from hiddenstate_models.data import text
from hiddenstate_models.data.sources import File
from hiddenstate_models.errors import ConfigurationError, DataError, TrainingError
from hiddenstate_models.evaluation.commands import evaluate
from hiddenstate_models.training import commands
from hiddenstate_models.training.checkpoint import load_checkpoint
from hiddenstate_models.training.failures import memory_explained
from hiddenstate_models.training.next_word import NEXT_WORD
from hiddenstate_models.training.recipe import Told

__all__ = ["documents"]


@pytest.fixture
def corpus(documents: list[list[str]], tmp_path: Path) -> Path:
    return write_corpus(tmp_path, documents)


@pytest.fixture
def stopped(corpus: Path, tmp_path: Path) -> Path:
    """A run stopped in its second epoch."""
    out = tmp_path / "run"
    assert not commands.train(NEXT_WORD, Told([str(corpus)], [], WORDS, OPTIONS), out, max_updates=80)
    assert (out / "best.safetensors").exists()
    return out


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(corpus: Path, tmp_path: Path) -> None:
    """A rate that makes the weights themselves infinite, which only the next update's loss would tell."""
    out = tmp_path / "run"
    assert not commands.train(NEXT_WORD, Told([str(corpus)], [], WORDS, OPTIONS), out, max_updates=5)
    with pytest.raises(TrainingError, match=r"no finite numbers? .*at update \d+ \(epoch \d\).*lower --learning-rate"):
        commands.resume(NEXT_WORD, out, changes={"learning_rate": 1e39, "warmup": 0, "checkpoint_minutes": 0.0})
    checkpoint = load_checkpoint(out / "checkpoint")
    assert checkpoint.progress["update"] >= 5
    assert all(weight.isfinite().all() for weight in checkpoint.weights.values())
    record = json.loads((out / "run.json").read_text())
    assert record["training"]["learning_rate"] == 1e39
    assert not commands.resume(NEXT_WORD, out, changes={"learning_rate": 1e-3, "warmup": 4}, max_updates=20)
    assert load_checkpoint(out / "checkpoint").progress["update"] == 20


def test_weights_that_are_no_numbers_are_not_saved(documents: list[list[str]]) -> None:
    run = trainer(documents, OPTIONS)
    with torch.no_grad():
        network_of(run).head.bias[0] = torch.inf
    with pytest.raises(TrainingError, match=r"weights of head.bias are no finite numbers any more at update 0"):
        run.checkpoint()


def test_a_validation_loss_that_is_no_number_stops(documents: list[list[str]]) -> None:
    run = trainer(documents, OPTIONS)
    run._task.validate = lambda _network: {"loss": float("nan")}  # type: ignore[method-assign, assignment]
    with pytest.raises(TrainingError, match="the validation loss is nan after epoch 1"):
        run.fit(on_checkpoint=lambda _: None, on_best=lambda _: None)


_TIGHT = """
import resource, sys
from hiddenstate_models.cli import main
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
main()
"""


def test_out_of_the_hosts_memory(corpus: Path, tmp_path: Path) -> None:
    """With 8 GiB of address space a hidden layer of 40,000 units does not fit."""
    flags = ["train", "next-word", "--data", str(corpus), "--out", str(tmp_path / "run"), "--accelerator", "cpu"]
    sizes = ["--hidden", "40000", "--embedding", "40000"]
    done = subprocess.run([sys.executable, "-c", _TIGHT, *flags, *sizes], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "error: out of memory while the data was read and the network built" in done.stderr
    assert "Lower --lanes (now 64)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."), "out of the GPU's memory"),
        (MemoryError("Unable to allocate 8.00 GiB"), "out of memory"),
    ],
)
def test_out_of_memory_in_training_keeps_what_was_saved(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, memory: str
) -> None:
    monkeypatch.setattr("hiddenstate_models.training.next_word.NextWordTask.loss", raising(error))
    with pytest.raises(TrainingError, match=rf"{memory} at update 80 \(epoch 2\): .*Lower --lanes \(now 4\)"):
        commands.resume(NEXT_WORD, stopped)
    assert load_checkpoint(stopped / "checkpoint").progress["update"] == 80


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_explained(lambda: "anywhere", OPTIONS):
        raise RuntimeError("shapes do not fit")


def test_bytes_that_are_no_text_are_told_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"first line\nna\xefve\n")
    with pytest.raises(DataError, match=r"latin.txt, line 2: byte 0xef is no UTF-8; convert"):
        list(text.read_documents([File(tmp_path / "latin.txt")]))


def test_resuming_with_another_vocabulary_is_refused(stopped: Path, documents: list[list[str]]) -> None:
    text.train_tokenizer(documents, 10, lowercase=True).save(str(stopped / "tokenizer.json"))
    with pytest.raises(DataError, match=r"its network would not be the same, vocabulary_size was 16 and is 10 now"):
        commands.resume(NEXT_WORD, stopped)


def test_resuming_with_other_data_is_refused(stopped: Path, corpus: Path) -> None:
    corpus.write_text(corpus.read_text() + "\n\nU\tw1 w2 w3\n")
    with pytest.raises(DataError, match=r"its data would not be the same, documents was \d+ and is \d+ now"):
        commands.resume(NEXT_WORD, stopped)


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("checkpoint/progress.json", lambda record: record["progress"].update(decay=1.0), "checkpoint .* knew decay: "),
        ("checkpoint/progress.json", lambda record: record["progress"].pop("averaged"), "which lacked averaged: go on"),
        ("checkpoint/progress.json", lambda record: record.pop("optimizer"), "no checkpoint of this version"),
        ("run.json", lambda record: record["training"].update(bptt=35), "which knew bptt: .*run/config.toml"),
        ("run.json", lambda record: record["data"]["options"].update(stem=True), "which knew stem: go on"),
    ],
)
def test_what_another_version_saved_is_told(
    stopped: Path, file: str, change: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    changed(stopped / file, change)
    with pytest.raises(DataError, match=complaint):
        commands.resume(NEXT_WORD, stopped)


def test_lanes_of_another_size_are_told(stopped: Path) -> None:
    path = stopped / "checkpoint" / "tensors.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "state": tensors["state"][:, :-1].contiguous()}, path)
    with pytest.raises(DataError, match=r"holds states of \[4, \d+\] numbers, lanes by size, where this network has"):
        commands.resume(NEXT_WORD, stopped)
    save_file({name: tensor for name, tensor in tensors.items() if name != "state"}, path)
    with pytest.raises(DataError, match="no checkpoint of this version"):
        commands.resume(NEXT_WORD, stopped)


def test_evaluating_with_another_vocabulary_is_refused(stopped: Path, corpus: Path, documents: list[list[str]]) -> None:
    text.train_tokenizer(documents, 10, lowercase=True).save(str(stopped / "tokenizer.json"))
    with pytest.raises(DataError, match=r"tokenizer.json holds 10 words, and the model predicts 16: put the file back"):
        evaluate(stopped, [str(corpus)], [], as_json=True)


def test_weights_of_another_network_are_refused(stopped: Path, corpus: Path) -> None:
    record = json.loads((stopped / "run.json").read_text())
    record["network"]["hidden_sizes"] = [7, 5]
    (stopped / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"are of another network or vocabulary: cells\.layers\.\d\.\w+ is \("):
        evaluate(stopped, [str(corpus)], [], as_json=True)


def test_only_what_nothing_depends_on_can_be_told_anew(stopped: Path) -> None:
    with pytest.raises(ConfigurationError, match="keeps its lanes, hidden; what can be changed is epochs"):
        CliRunner().invoke(
            app,
            ["train", "next-word", "--out", str(stopped), "--resume", "--lanes", "2", "--hidden", "3"],
            catch_exceptions=False,
        )
    flags = ["--resume", "--epochs", "2", "--learning-rate", "0.005"]
    result = CliRunner().invoke(app, ["train", "next-word", "--out", str(stopped), *flags], catch_exceptions=False)
    assert "Done." in result.output
    assert load_checkpoint(stopped / "checkpoint").progress["epoch"] == 2
    assert json.loads((stopped / "run.json").read_text())["training"]["learning_rate"] == 0.005


def test_a_dry_run_tells_what_it_takes_and_writes_nothing(corpus: Path, tmp_path: Path) -> None:
    flags = ["--data", str(corpus), "--out", str(tmp_path / "run"), "--dry-run", "--hidden", "6", "--embedding", "6"]
    more = ["--k1", "3", "--k2", "3", "--lanes", "4", "--epochs", "7", "--average", "ema"]
    result = CliRunner().invoke(app, ["train", "next-word", *flags, *more], catch_exceptions=False)
    assert result.exit_code == 0
    told = {line[:24].strip(): line[24:].strip() for line in result.output.splitlines()}
    for name in ("parameters", "weights", "their average", "optimizer", "memory", "updates", "speed", "validation"):
        assert any(line.startswith(name) for line in told) or name in result.output, name
    assert "expected time" in result.output
    assert "after each of 7 epochs" in result.output
    assert not (tmp_path / "run").exists()


def test_a_dry_run_needs_data() -> None:
    with pytest.raises(ConfigurationError, match="name files with --data"):
        commands.dry_run(NEXT_WORD, Told([], [], WORDS, replace(OPTIONS)))
