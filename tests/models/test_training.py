"""The training loop: it repeats itself to the bit, its windows are what they say, and it stops cleanly."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from hiddenstate_models.data import text
from hiddenstate_models.errors import ConfigurationError, DataError, TrainingError
from hiddenstate_models.networks.words import NextWordNetwork
from hiddenstate_models.training import commands
from hiddenstate_models.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hiddenstate_models.training.clipping import clip_gradients
from hiddenstate_models.training.loop import Progress, Trainer, Update, make_optimizer
from hiddenstate_models.training.next_word import NEXT_WORD, NextWordOptions, NextWordTask
from hiddenstate_models.training.objectives import FullSoftmax, SampledSoftmax, smoothing
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.run import load_weights

WORDS = NextWordOptions(vocabulary=20, hidden="6,5", embedding=5, dropout=0.3)
OPTIONS = TrainingOptions(epochs=3, lanes=4, k1=3, k2=3, warmup=4, learning_rate=0.01, accelerator="cpu")


DENORMAL = torch.tensor(1e-40)


def flushes_denormals() -> bool:
    """Whether this processor can; leaves the switch off."""
    supported = torch.set_flush_denormal(True)
    torch.set_flush_denormal(False)
    return supported


@pytest.fixture(scope="module")
def documents() -> list[list[str]]:
    """Lines in which either of two words may follow each word."""
    generator = np.random.default_rng(0)

    def line() -> str:
        words = [int(generator.integers(15))]
        while len(words) < 9:
            words.append((3 * words[-1] + int(generator.integers(2))) % 15)
        return " ".join(f"w{word}" for word in words)

    return [[line() for _ in range(generator.integers(1, 4))] for _ in range(12)]


def trainer(documents: list[list[str]], options: TrainingOptions, words: NextWordOptions = WORDS) -> Trainer:
    tokenizer = text.train_tokenizer(documents, words.vocabulary, lowercase=True)
    corpus = text.encode(tokenizer, documents)
    torch.manual_seed(options.seed)
    network = NextWordNetwork(words.network(tokenizer.get_vocab_size()))
    task = NextWordTask(corpus, corpus, tokenizer.get_vocab_size(), options, words)
    return Trainer(network, task, options, fabric=Fabric(accelerator="cpu", devices=1))


def network_of(run: Trainer) -> NextWordNetwork:
    return cast(NextWordNetwork, run._network)


def fit(run: Trainer, max_updates: int | None = None) -> Checkpoint:
    kept: list[Checkpoint] = []
    run.fit(on_checkpoint=kept.append, on_best=lambda _: None, max_updates=max_updates)
    return kept[-1]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("k2", [3, 9])
@pytest.mark.parametrize("output", ["full", "sampled"])
def test_ten_updates_equal_five_and_five_after_a_resume(
    documents: list[list[str]], tmp_path: Path, optimizer: Any, k2: int, output: Any
) -> None:
    options = replace(OPTIONS, optimizer=optimizer, k2=k2)
    resumes_to_the_bit(documents, tmp_path, options, replace(WORDS, output=output, samples=6))


@pytest.mark.parametrize(
    "remedy",
    [
        {"gradient_regulariser": 0.5, "k2": 6},
        {"clip_adaptive": 0.1, "clip_value": 0.1},
        {"average": "ema", "schedule": "linear"},
        {"average": "nt-asgd", "non_monotone": 1, "schedule": "step", "decay_after": 0, "learning_rate": 3.0},
        {"sample_k1": True, "k1": 6, "k2": 6, "average": "asgd"},
    ],
)
def test_remedies_resume_to_the_bit(documents: list[list[str]], tmp_path: Path, remedy: dict[str, Any]) -> None:
    resumes_to_the_bit(documents, tmp_path, replace(OPTIONS, **remedy), replace(WORDS, label_smoothing=0.1))


def resumes_to_the_bit(
    documents: list[list[str]], tmp_path: Path, options: TrainingOptions, words: NextWordOptions
) -> None:
    straight = fit(trainer(documents, options, words), max_updates=10)
    save_checkpoint(tmp_path / "checkpoint", fit(trainer(documents, options, words), max_updates=5))
    second = trainer(documents, options, words)
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    second.restore(checkpoint, Progress(**checkpoint.progress))
    resumed = fit(second, max_updates=10)
    assert resumed.progress["update"] == 10
    for name, weight in straight.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name
    assert straight.average.keys() == resumed.average.keys()
    assert all(torch.equal(average, resumed.average[name]) for name, average in straight.average.items())
    assert straight.progress["history"] == resumed.progress["history"]
    assert torch.equal(straight.state, resumed.state)


def test_learning_lowers_the_loss(documents: list[list[str]]) -> None:
    run = trainer(documents, replace(OPTIONS, epochs=8, learning_rate=0.05, patience=8))
    fit(run)
    losses = [entry["training_loss"] for entry in run.progress.history]
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.skipif(not flushes_denormals(), reason="this processor cannot take denormals as zero")
def test_denormals_are_zero_in_training_and_numbers_after_it(documents: list[list[str]]) -> None:
    """Adam's mean gradient of a word that does not come any more shrinks to them, and they are slow."""
    run, smallest = trainer(documents, replace(OPTIONS, epochs=1)), []

    class Watcher:
        def updated(self, _update: Update, _progress: Progress, /) -> None:
            smallest.append(float(DENORMAL * 1.5))

        def validated(self, _progress: Progress) -> None:
            pass

    run._watchers = (Watcher(),)
    fit(run)
    assert set(smallest) == {0.0}
    assert float(DENORMAL * 1.5) > 0


@pytest.mark.parametrize(("k1", "k2"), [(1, 4), (2, 4), (4, 4)])
def test_the_gradient_of_an_update_flows_back_k2_steps(k1: int, k2: int) -> None:
    """The window's gradient equals one by hand over the last k2 steps with loss on the last k1."""
    words = replace(WORDS, dropout=0.0)
    line = [" ".join(f"w{i % 7}" for i in range(13))]
    options = replace(OPTIONS, lanes=1, k1=k1, k2=k2, optimizer="sgd", learning_rate=1e-12, clip_norm=0.0)
    run = trainer([line], options, words)
    updates = 12 // k1
    fit(run, max_updates=updates)
    network = network_of(run)
    got = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    tokenizer = text.train_tokenizer([line], words.vocabulary, lowercase=True)
    tokens = torch.from_numpy(text.encode(tokenizer, [line]).tokens).long().unsqueeze(1)
    network.zero_grad()
    end = updates * k1
    with torch.no_grad():
        _, state = (
            network(tokens[: end - k2], network.initial_state(1)) if end > k2 else (None, network.initial_state(1))
        )
    outputs, _ = network(tokens[end - k2 : end], state)
    loss = network.head.loss(outputs[-k1:], tokens[end - k1 + 1 : end + 1]) / k1
    loss.backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_state_is_carried_within_a_document_and_reset_between(documents: list[list[str]]) -> None:
    """Chunk by chunk with carried state gives the loss of every document read whole from a fresh state."""
    words = replace(WORDS, dropout=0.0)
    seen: list[tuple[float, int]] = []

    class Watcher:
        def updated(self, update: Update, _: Progress, /) -> None:
            seen.append((update.loss * update.targets, update.targets))

        def validated(self, _: Progress) -> None:
            pass

    run = trainer(documents, replace(OPTIONS, epochs=1, learning_rate=1e-12), words)
    run._watchers = (Watcher(),)
    fit(run)
    tokenizer = text.train_tokenizer(documents, words.vocabulary, lowercase=True)
    network = network_of(run)
    total = count = 0.0
    for ids in text.encode(tokenizer, documents).documents():
        tokens = torch.from_numpy(ids).long().unsqueeze(1)
        with torch.no_grad():
            outputs, _ = network(tokens[:-1], network.initial_state(1))
            total += float(network.head.loss(outputs, tokens[1:]))
        count += len(ids) - 1
    assert sum(targets for _, targets in seen) == count
    assert sum(loss for loss, _ in seen) == pytest.approx(total, rel=1e-5)


def test_sampled_softmax_estimates_the_full_one() -> None:
    torch.manual_seed(0)
    words = replace(WORDS, vocabulary=200, hidden="16", embedding=16)
    network = NextWordNetwork(words.network(200))
    torch.nn.init.normal_(network.encoder.weight, std=0.5)
    outputs, targets = torch.randn(5, 4, 16), torch.randint(0, 200, (5, 4))
    targets[0, 0] = -100
    sampled = SampledSoftmax(np.arange(200, 0, -1), 2000)
    with torch.no_grad():
        mean = np.mean([float(sampled(network.head, outputs, targets)) for _ in range(20)])
        full = float(FullSoftmax()(network.head, outputs, targets))
    assert mean == pytest.approx(full, rel=0.01)


@pytest.mark.parametrize("output", ["full", "sampled"])
def test_a_new_network_begins_with_the_frequencies_of_words(output: Any) -> None:
    words = replace(WORDS, vocabulary=4, output=output)
    corpus = text.Corpus(np.array([1, 2, 2, 2, 1, 0], np.int32), np.array([0]))
    network = NextWordNetwork(words.network(4))
    NextWordTask(corpus, corpus, 4, OPTIONS, words).prepare(network)
    torch.testing.assert_close(network.head.bias.softmax(0), torch.tensor([2, 3, 4, 1]) / 10)


@pytest.mark.parametrize(
    ("output", "vocabulary", "samples", "full_epochs", "sampled"),
    [
        ("auto", 31, 8, 0, [False, False, False]),
        ("auto", 32, 8, 0, [True, True, True]),
        ("sampled", 20, 8, 1, [True, True, False]),
        ("full", 32, 8, 0, [False, False, False]),
    ],
)
def test_which_epochs_sample(output: Any, vocabulary: int, samples: int, full_epochs: int, sampled: list[bool]) -> None:
    """Told by their losses: a sample's are another one every time, those over all words are not."""
    words = replace(WORDS, output=output, samples=samples, full_epochs=full_epochs)
    corpus = text.Corpus(np.arange(vocabulary, dtype=np.int32), np.array([0]))
    task = NextWordTask(corpus, corpus, vocabulary, OPTIONS, words)
    network = NextWordNetwork(words.network(vocabulary))
    outputs, targets = torch.randn(5, 4, 5), torch.randint(0, vocabulary, (5, 4))
    losses = [{float(task.loss(network, outputs, targets, epoch).detach()) for _ in range(9)} for epoch in range(3)]
    assert [len(several) > 1 for several in losses] == sampled


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_label_smoothing_is_torchs(share: float) -> None:
    torch.manual_seed(0)
    network = NextWordNetwork(replace(WORDS, hidden="16", embedding=16, dropout=0.0).network(30))
    torch.nn.init.normal_(network.head.bias)
    outputs, targets = torch.randn(5, 4, 16), torch.randint(0, 30, (5, 4))
    targets[1, 2] = -100
    with torch.no_grad():
        got = FullSoftmax()(network.head, outputs, targets) + share * smoothing(network.head, outputs, targets)
        logits = network.head(outputs).flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum", label_smoothing=share)
    torch.testing.assert_close(got, expected)


def test_clipping_by_value_and_by_norm() -> None:
    network = torch.nn.Linear(2, 1, bias=False)
    network.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(network, replace(OPTIONS, clip_norm=1.0)) == pytest.approx((5.0, 1.0))
    assert network.weight.grad.norm() == pytest.approx(1.0)
    network.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(network, replace(OPTIONS, clip_norm=0.0, clip_value=3.5)) == pytest.approx((5.0, 4.6097722))
    assert network.weight.grad.tolist() == [[3.0, 3.5]]
    assert clip_gradients(network, replace(OPTIONS, clip_norm=100.0))[1] == pytest.approx(4.6097722)


def test_adaptive_clipping_bounds_each_unit_by_its_own_weights() -> None:
    """Brock et al. (2021), equation 3: each row's gradient to at most 0.1 of the row's weights; the head left alone."""
    network = torch.nn.ModuleDict({"cells": torch.nn.Linear(2, 3), "head": torch.nn.Linear(2, 1)})
    cells, head = network["cells"], network["head"]
    cells.weight.data = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])
    cells.bias.data = torch.tensor([0.0, 6.0, 8.0])
    cells.weight.grad = torch.tensor([[6.0, 8.0], [0.06, 0.08], [3.0, 4.0]])
    cells.bias.grad = torch.tensor([0.0, 3.0, 4.0])
    head.weight.grad = torch.tensor([[300.0, 400.0]])
    before, after = clip_gradients(network, replace(OPTIONS, clip_norm=0.0, clip_adaptive=0.1))
    torch.testing.assert_close(cells.weight.grad, torch.tensor([[0.3, 0.4], [0.06, 0.08], [0.6e-4, 0.8e-4]]))
    torch.testing.assert_close(cells.bias.grad, torch.tensor([0.0, 0.6, 0.8]))
    assert head.weight.grad.tolist() == [[300.0, 400.0]]
    assert before > after > 500


def test_adaptive_clipping_leaves_gradients_of_zero_and_is_followed_by_the_norm() -> None:
    network = torch.nn.Linear(2, 1, bias=False)
    network.weight.grad = torch.zeros(1, 2)
    assert clip_gradients(network, replace(OPTIONS, clip_norm=1.0, clip_adaptive=0.1)) == (0.0, 0.0)
    network.weight.grad = torch.tensor([[3e3, 4e3]])
    network.weight.data = torch.tensor([[30.0, 40.0]])
    assert clip_gradients(network, replace(OPTIONS, clip_norm=1.0, clip_adaptive=0.1)) == pytest.approx((5e3, 1.0))


def test_a_loss_that_is_no_number_stops_with_the_checkpoint_kept(documents: list[list[str]]) -> None:
    run = trainer(documents, OPTIONS)
    with torch.no_grad():
        network_of(run).head.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"update 0 .*lower --learning-rate"):
        fit(run)


def test_plateau_lowers_the_rate(documents: list[list[str]]) -> None:
    run = trainer(documents, replace(OPTIONS, schedule="plateau", learning_rate=1e-12, patience=3, warmup=0))
    run.progress.best_loss = 0.0
    fit(run)
    assert run.progress.plateaus == 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs must be at least 1"),
        ("k2", 4, "k2 must be a multiple of k1"),
        ("learning_rate", 0.0, "learning_rate must be greater than 0"),
        ("clip_norm", -1.0, "clip_norm must not be negative"),
        ("decay", 1.5, "decay must lie between 0 and 1"),
        ("non_monotone", 0, "non_monotone must be at least 1"),
    ],
)
def test_options_are_checked(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        replace(OPTIONS, **{field: value})


def test_optimizers_take_the_learning_rate() -> None:
    for kind in ("sgd", "adam", "adamw", "rmsprop"):
        options = replace(OPTIONS, optimizer=kind)
        assert make_optimizer(torch.nn.Linear(1, 1), options).param_groups[0]["lr"] == OPTIONS.learning_rate


def test_no_checkpoint_to_resume_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint to resume from"):
        load_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(DataError, match="no best weights yet"):
        load_weights(tmp_path)


def write_corpus(folder: Path, documents: list[list[str]]) -> Path:
    path = folder / "corpus.txt"
    path.write_text("\n\n".join("\n".join(f"U\t{line}" for line in lines) for lines in documents * 3))
    return path


def command(corpus: Path, out: Path, *flags: str) -> list[str]:
    # fmt: off
    return [
        "-m", "hiddenstate_models", "train", "next-word", "--data", str(corpus), "--out", str(out), "--epochs", "2",
        "--lanes", "4", "--k1", "3", "--k2", "3", "--hidden", "6", "--embedding", "6", "--dropout", "0", "--vocabulary",
        "20", "--accelerator", "cpu", *flags,
    ]
    # fmt: on


def test_a_run_from_the_command_line_leaves_its_reports(documents: list[list[str]], tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path, documents), tmp_path / "run"
    done = subprocess.run(
        [sys.executable, *command(corpus, out)], capture_output=True, text=True, check=True, timeout=120
    )
    assert "validation loss" in done.stdout
    assert "perplexity" in done.stdout
    names = {path.name for path in out.iterdir()}
    assert {"run.json", "checkpoint", "best.safetensors", "tokenizer.json", "learning-curve.png"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert json.loads((out / "run.json").read_text())["task"] == "next-word"
    again = subprocess.run([sys.executable, *command(corpus, out)], capture_output=True, text=True, timeout=120)
    assert again.returncode == 1
    assert "holds a run already" in again.stderr
    assert "Traceback" not in again.stderr


def test_interrupting_saves_and_resuming_finishes(documents: list[list[str]], tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path, documents), tmp_path / "run"
    flags = command(corpus, out, "--epochs", "100000", "--patience", "100000")
    process = subprocess.Popen([sys.executable, *flags], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Stopped and saved" in output
    stopped = load_checkpoint(out / "checkpoint").progress["update"]
    record = json.loads((out / "run.json").read_text())
    record["training"]["epochs"] = load_checkpoint(out / "checkpoint").progress["epoch"] + 1
    (out / "run.json").write_text(json.dumps(record))
    assert commands.resume(NEXT_WORD, out)
    assert load_checkpoint(out / "checkpoint").progress["update"] > stopped
