"""Writing bundles: from runs and from bundles, in float and in int8, with cards, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import typer
from safetensors.numpy import load_file
from safetensors.torch import save_file
from typer.testing import CliRunner

from hiddenstate_models.bundle import (
    CARD_FILE,
    CONFIG_FILE,
    CURVE_FILE,
    INT8_STEP_FILE,
    SEQUENCE_FILE,
    STEP_FILE,
    WEIGHTS_FILE,
    Bundle,
)
from hiddenstate_models.cli.bundles import export, inspect
from hiddenstate_models.data import text
from hiddenstate_models.errors import BundleCorruptError, BundleError, DataError
from hiddenstate_models.export import export_source, random_bundle
from hiddenstate_models.export.sources import ExportOptions
from hiddenstate_models.networks.values import NextValueConfig, NextValueNetwork
from hiddenstate_models.networks.words import NextWordConfig, NextWordNetwork
from hiddenstate_models.reference import reference_step

SENTENCES = ["the cat sat on the mat .", "the dog sat on the cat .", "a mat , a cat and a dog ."]


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def words_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NextWordNetwork]:
    """The folder a next-word run leaves, and its network."""
    folder = tmp_path_factory.mktemp("run")
    valid = folder / "valid.txt"
    valid.write_text("\n".join(SENTENCES * 10))
    tokenizer = text.train_tokenizer([SENTENCES], 100, lowercase=True)
    torch.manual_seed(0)
    config = NextWordConfig(
        vocabulary_size=tokenizer.get_vocab_size(), hidden_sizes=(12, 6), embedding_size=6, cell="lstm"
    )
    network = NextWordNetwork(config).eval()
    record = {
        "task": "next-word",
        "network": config.to_dict(),
        "training": {"epochs": 3},
        "data": {
            "training": ["books/a.txt"],
            "validation": [str(valid)],
            "options": {"lowercase": True, "documents": "file"},
        },
        "command": "hiddenstate-models train next-word --data 'books/*.txt'",
    }
    scores = {"validation": {"this model": {"perplexity": 12.25}, "Kneser-Ney 5-gram": {"perplexity": 20.5}}}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "learning-curve.png").write_bytes(b"png")
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(network.state_dict(), folder / "best.safetensors")
    return folder, network


def test_a_run_becomes_a_bundle_that_steps_like_its_network(
    words_run: tuple[Path, NextWordNetwork], tmp_path: Path
) -> None:
    folder, network = words_run
    bundle = export_source(folder, tmp_path, ExportOptions(dtype="float32"))
    assert (bundle.folder, bundle.config.version) == (tmp_path / "next-word" / "1", 1)
    assert (bundle.folder / CURVE_FILE).read_bytes() == b"png"
    assert bundle.config.text is not None
    assert bundle.vocabulary[bundle.config.text.end_token] == "<eos>"

    tokens = torch.randint(0, len(bundle.vocabulary), (9, 4))
    with torch.no_grad():
        outputs, _ = network(tokens, network.initial_state(4))
        expected = network.head(outputs).log_softmax(dim=-1)
    step = session(bundle.folder / STEP_FILE)
    states = np.zeros((4, bundle.config.state_size), np.float32)
    k = np.array([len(bundle.vocabulary)])
    for t, row in enumerate(tokens):
        surprises, top, probabilities, states = step.run(None, {"tokens": row.numpy(), "states": states, "k": k})
        by_token = np.empty_like(probabilities)
        np.put_along_axis(by_token, top.astype(np.int64), probabilities, axis=1)
        np.testing.assert_allclose(np.log(by_token), expected[t], rtol=1e-5, atol=1e-5)
        if t:
            before = expected[t - 1].gather(1, row[:, None]).squeeze(1)
            np.testing.assert_allclose(surprises, -before, rtol=1e-5, atol=1e-5)


def test_the_card_tells_data_scores_command_and_int8(words_run: tuple[Path, NextWordNetwork], tmp_path: Path) -> None:
    options = ExportOptions(data=["Some Books, CC0"], licence="CC BY 4.0")
    bundle = export_source(words_run[0], tmp_path, options)
    card = (bundle.folder / CARD_FILE).read_text()
    for part in (
        "# next-word, version 1",
        "Some Books, CC0",
        "Licence of these weights: CC BY 4.0",
        "| this model | 12.25 |",
        "| Kneser-Ney 5-gram | 20.5 |",
        "hiddenstate-models train next-word --data 'books/*.txt'",
        "(validation text)",
        "## Limits",
    ):
        assert part in card
    loss = bundle.config.scores["int8"]
    assert loss["probe"] == "validation text"
    assert loss["tokens"] % 64 == 0
    assert abs(loss["perplexity"] / loss["float64_perplexity"] - 1) < 0.01


def test_a_value_run_becomes_a_bundle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = NextValueConfig(columns=2, targets=(0,), hidden_sizes=(5,))
    network = NextValueNetwork(config).eval()
    record = {
        "task": "next-value",
        "network": config.to_dict(),
        "training": {},
        "data": {"training": ["a.csv"], "columns": ["load", "temperature"]},
        "command": "hiddenstate-models train next-value --data a.csv",
    }
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="no best weights yet"):
        export_source(run, tmp_path, ExportOptions())
    save_file(network.state_dict(), run / "best.safetensors")

    bundle = export_source(run, tmp_path, ExportOptions(name="load"))
    assert bundle.config.values is not None
    assert bundle.config.values.columns == ("load", "temperature")
    values = torch.randn(20, 3, 2, dtype=torch.float64).cumsum(dim=0)
    with torch.no_grad():
        forecast, _ = network(values, network.initial_state(3))
    expected = forecast.prediction
    step = session(bundle.folder / STEP_FILE)
    states = np.zeros((3, bundle.config.state_size), np.float32)
    for t, row in enumerate(values):
        _, locations, scales, freedom, states = step.run(None, {"values": row.numpy(), "states": states})
        np.testing.assert_allclose(locations, expected.locations[t], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(scales, expected.scales[t], rtol=1e-5)
        np.testing.assert_allclose(freedom, expected.degrees_of_freedom[t], rtol=1e-5)
    with pytest.raises(BundleError, match="int8 is for next-word models"):
        export_source(run, tmp_path, ExportOptions(int8=True))


def test_a_bundle_exports_again_with_another_version_and_type(tmp_path: Path) -> None:
    first = random_bundle(tmp_path, "next-word", int8=True)
    second = export_source(first.folder, tmp_path, ExportOptions(dtype="float16", int8=False))
    assert second.config.version == 2
    assert not second.has_int8
    assert "int8" not in second.config.scores
    assert second.vocabulary == first.vocabulary
    before, after = load_file(first.folder / WEIGHTS_FILE), load_file(second.folder / WEIGHTS_FILE)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array.astype(np.float16))
    assert export_source(first.folder, tmp_path, ExportOptions(version=9)).config.version == 9
    assert export_source(first.folder, tmp_path, ExportOptions()).config.version == 10


def test_the_same_source_gives_the_same_files(tmp_path: Path) -> None:
    one, two = (random_bundle(tmp_path / name, "next-word", int8=True) for name in ("one", "two"))
    assert one.config == two.config


def test_an_existing_version_is_never_overwritten(tmp_path: Path) -> None:
    random_bundle(tmp_path, "next-word")
    with pytest.raises(BundleError, match="exists; choose another version"):
        random_bundle(tmp_path, "next-word")


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleCorruptError):
        random_bundle(tmp_path, "next-word", name="bad name!")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_others_may_read_a_bundle(tmp_path: Path) -> None:
    folder = random_bundle(tmp_path, "next-word", int8=True).folder
    assert folder.stat().st_mode & 0o555 == 0o555
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())


def test_neither_run_nor_bundle(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a training run"):
        export_source(tmp_path, tmp_path, ExportOptions())


def test_float_graphs_hold_no_weights(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path, "next-word", vocabulary_size=1000)
    inside = [
        tensor
        for tensor in onnx.load(bundle.folder / STEP_FILE, load_external_data=False).graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
    ]
    assert sum(len(tensor.raw_data) for tensor in inside) < 500
    onnx.checker.check_model(str(bundle.folder / STEP_FILE))


INT8_NETWORKS: dict[str, dict[str, Any]] = {
    "lstm": {"hidden_sizes": [32, 32], "embedding_size": 32},
    "lstm-untied": {"hidden_sizes": [32, 16], "embedding_size": 24, "tied": False},
    "lstm-projected": {"hidden_sizes": [48, 32], "projection": 16, "embedding_size": 16},
    "lstm-everything": {
        "hidden_sizes": [32],
        "embedding_size": 32,
        "layer_norm": True,
        "coupled": True,
        "peepholes": True,
    },
    "jordan": {"cell": "jordan", "hidden_sizes": [32], "embedding_size": 32},
    "none": {"cell": "none", "hidden_sizes": [32], "embedding_size": 32},
    "rnn-relu": {"cell": "rnn-relu", "hidden_sizes": [32, 32], "embedding_size": 32},
    "gru": {"cell": "gru", "hidden_sizes": [32, 32], "embedding_size": 32},
    "gru-residual": {"cell": "gru", "hidden_sizes": [32, 32], "embedding_size": 32, "residual": True},
}


@pytest.mark.parametrize("network", INT8_NETWORKS.values(), ids=INT8_NETWORKS.keys())
def test_int8_is_close_consistent_and_independent_of_the_batch(tmp_path: Path, network: dict[str, Any]) -> None:
    bundle = random_bundle(tmp_path, "next-word", vocabulary_size=300, int8=True, **network)
    loss = bundle.config.scores["int8"]
    assert loss["recall_at_5"] > 0.999
    assert abs(loss["perplexity"] / loss["float64_perplexity"] - 1) < 0.005
    assert abs(loss["normalizer_bias"]) <= loss["normalizer_error"] < 0.01
    assert bundle.prefers_int8

    step, rng = session(bundle.folder / INT8_STEP_FILE), np.random.default_rng(0)
    states = np.zeros((33, bundle.config.state_size), np.float32)
    k = np.array([300])
    for _ in range(3):
        tokens = rng.integers(0, 300, 33)
        _, top, probabilities, states = step.run(None, {"tokens": tokens, "states": states, "k": k})
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)

    tokens = rng.integers(0, 300, 33)
    together = step.run(None, {"tokens": tokens, "states": states, "k": k})
    chosen = (top == tokens[:, None]).argmax(axis=1)
    np.testing.assert_allclose(together[0], -np.log(probabilities[np.arange(33), chosen]), rtol=1e-4, atol=1e-4)
    for start, end in [(0, 1), (1, 8), (8, 33)]:
        feed = {"tokens": tokens[start:end], "states": states[start:end], "k": k}
        for alone, whole in zip(step.run(None, feed), together, strict=True):
            np.testing.assert_allclose(alone, whole[start:end], rtol=1e-5, atol=1e-5)


def test_what_int8_finds_is_as_probable_as_float64_says(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path, "next-word", int8=True, vocabulary_size=900, hidden_sizes=[48], embedding_size=48)
    step, reference = session(bundle.folder / INT8_STEP_FILE), reference_step(bundle, dtype=torch.float64)
    rng, states = np.random.default_rng(0), np.zeros((20, bundle.config.state_size), np.float32)
    expected_states = torch.zeros(20, bundle.config.state_size, dtype=torch.float64)
    for t in range(10):
        tokens = rng.integers(0, 900, 20)
        surprises, top, probabilities, states = step.run(None, {"tokens": tokens, "states": states, "k": np.array([5])})
        expected = reference(torch.from_numpy(tokens), expected_states, 5)
        expected_states = expected[-1]
        assert np.isin(top, expected[1]).mean() >= 0.99
        errors = states[:, -1:] - expected_states[:, -1:].numpy()
        assert np.abs(errors).max() < 0.01
        # What differs from float64 is the normaliser, by the same in every word.
        exact = probabilities * np.exp(errors)
        for row in range(20):
            known = dict(zip(expected[1][row].tolist(), expected[2][row].tolist(), strict=True))
            for token, probability in zip(top[row].tolist(), exact[row].tolist(), strict=True):
                if token in known:
                    assert probability == pytest.approx(known[token], rel=1e-5)
        if t:
            np.testing.assert_allclose(surprises, expected[0], atol=0.01)


def test_int8_that_was_measured_as_worse_is_not_preferred(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path, "next-word", int8=True)
    assert bundle.prefers_int8
    loss = bundle.config.scores["int8"]
    for worse in (
        {"recall_at_5": 0.99},
        {"perplexity": 1.01 * loss["float64_perplexity"]},
        {"float64_perplexity": None},
    ):
        config = bundle.config.model_copy(update={"scores": {"int8": loss | worse}})
        assert not Bundle(bundle.folder, config, bundle.tensors).prefers_int8
    assert not random_bundle(tmp_path, "next-word", version=2).prefers_int8


def test_text_to_measure_int8_on_can_be_named(tmp_path: Path) -> None:
    first = random_bundle(tmp_path, "next-word", int8=True)
    read = tmp_path / "some.txt"
    read.write_text("the w7 , a w9 . " * 100)
    second = export_source(first.folder, tmp_path, ExportOptions(probe=[str(read)]))
    loss = second.config.scores["int8"]
    assert (loss["probe"], loss["tokens"]) == ("some.txt", 576)
    value = random_bundle(tmp_path, "next-value")
    with pytest.raises(DataError, match="reads none"):
        export_source(value.folder, tmp_path, ExportOptions(probe=[str(read)]))


def test_value_rows_alone_equal_rows_in_batches(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path, "next-value", hidden_sizes=[32], columns=2, targets=[0, 1])
    step, rng = session(bundle.folder / STEP_FILE), np.random.default_rng(0)
    states = np.zeros((40, bundle.config.state_size), np.float32)
    for _ in range(5):
        values = rng.normal(size=(40, 2)) * 10.0 ** rng.integers(-3, 9, (40, 1))
        together = step.run(None, {"values": values, "states": states})
        for start, end in [(0, 1), (1, 4), (4, 40)]:
            alone = step.run(None, {"values": values[start:end], "states": states[start:end]})
            for part, whole in zip(alone, together, strict=True):
                np.testing.assert_allclose(part, whole[start:end], rtol=1e-5, atol=1e-5)
        states = together[-1]


@pytest.fixture(scope="module")
def cli() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(export)
    app.command()(inspect)
    return app


def test_export_command(cli: typer.Typer, words_run: tuple[Path, NextWordNetwork], tmp_path: Path) -> None:
    arguments = ["export", str(words_run[0]), "--out", str(tmp_path), "--name", "pets", "--no-int8"]
    result = CliRunner().invoke(cli, [*arguments, "--version", "7", "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    assert "pets, version 7" in result.output
    bundle = Bundle.load(tmp_path / "pets" / "7")
    assert not bundle.has_int8
    assert {tensor.dtype for tensor in bundle.tensors.values()} == {"F32"}


def test_inspect_command(cli: typer.Typer, tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path, "next-value")
    shown = CliRunner().invoke(cli, ["inspect", str(bundle.folder)])
    assert shown.exit_code == 0
    for part in ("next-value, version 1", "GRU with 8 units", "head.weight", "3 x 8", "model.safetensors"):
        assert part in shown.output
    as_json = CliRunner().invoke(cli, ["inspect", str(bundle.folder), "--json"])
    fields = json.loads(as_json.output)
    assert fields["tensors"]["head.bias"] == {"dtype": "F32", "shape": [3], "bytes": 12}
    assert fields["files"].keys() == {WEIGHTS_FILE, STEP_FILE, SEQUENCE_FILE, CARD_FILE}
    (bundle.folder / CONFIG_FILE).unlink()
    refused = CliRunner().invoke(cli, ["inspect", str(bundle.folder)])
    assert refused.exit_code == 1
    assert "is no bundle" in str(refused.exception)
