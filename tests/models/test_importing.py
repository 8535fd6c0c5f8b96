"""Models from elsewhere: their bundles agree with them, and what bundles do not have is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from hiddenstate_models.bundle import CARD_FILE, Bundle
from hiddenstate_models.cli import app
from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.importing import ImportOptions, import_model
from hiddenstate_models.reference import ReferenceValueStep, reference_step

WORDS = ["<unk>", "<eos>", "the", "cat", "sat", "on", "a", "mat", "."]
CELLS: dict[str, Callable[..., nn.Module]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn-tanh": nn.RNN,
    "rnn-relu": lambda *sizes, **more: nn.RNN(*sizes, nonlinearity="relu", **more),
}


class Words(nn.Module):
    """A language model as people write it."""

    def __init__(self, rnn: nn.Module, units: int, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(len(WORDS), 6)
        self.rnn = rnn
        self.decoder = nn.Linear(units, len(WORDS))
        if tied:
            self.decoder.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [T, B] or [B, T] -> logits."""
        outputs, _ = self.rnn(self.embed(tokens))
        logits: Tensor = self.decoder(outputs)
        return logits


class Values(nn.Module):
    """A forecaster as people write it: of normalised values, one step ahead."""

    def __init__(self, columns: int = 1, targets: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru = nn.GRU(columns, 5, num_layers=2, batch_first=True)
        self.linear = nn.Linear(5, targets)

    def forward(self, values: Tensor) -> Tensor:
        """values [B, T, columns] -> next values [B, T, targets]."""
        outputs, _ = self.gru(values)
        predicted: Tensor = self.linear(outputs)
        return predicted


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def options(**more: Any) -> ImportOptions:
    return ImportOptions(**({"name": "mine"} | more))


def log_probabilities(bundle: Bundle, tokens: Tensor) -> Tensor:
    """[T, words] after each of the tokens [T], by the bundle's step in torch."""
    network: Any = reference_step(bundle).network
    outputs, _ = network(tokens.unsqueeze(1), network.initial_state(1))
    scores: Tensor = network.head(outputs).log_softmax(-1).squeeze(1)
    return scores


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_a_state_dict_of_words_becomes_a_bundle(cell: str, form: str, vocabulary: Path, tmp_path: Path) -> None:
    model = Words(CELLS[cell](6, 7, num_layers=2), 7)
    file = tmp_path / f"model.{form}"
    torch.save(model.state_dict(), file) if form == "pt" else save_file(model.state_dict(), file)
    activation = cell.removeprefix("rnn-") if cell.startswith("rnn") else "tanh"
    bundle = import_model(file, tmp_path, "next-word", options(vocabulary=vocabulary, activation=activation))
    assert bundle.config.network["cell"] == cell
    assert bundle.vocabulary == tuple(WORDS)
    tokens = torch.tensor([2, 3, 4, 5, 6, 7, 8, 1])
    with torch.no_grad():
        expected = model(tokens.unsqueeze(1)).squeeze(1).log_softmax(-1)
    torch.testing.assert_close(log_probabilities(bundle, tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("rnn", "units"),
    [
        (nn.LSTM(6, 9, proj_size=6), 6),
        (nn.LSTM(6, 6, bias=False), 6),
        (nn.LSTM(6, 6, num_layers=3, batch_first=True), 6),
    ],
    ids=["projection", "no-biases", "batch-first"],
)
def test_forms_of_lstms(rnn: nn.Module, units: int, vocabulary: Path, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model_state_dict": Words(rnn, units, tied=True).state_dict()}, tmp_path / "model.pt")
    bundle = import_model(tmp_path / "model.pt", tmp_path, "next-word", options(vocabulary=vocabulary))
    assert bundle.config.network["tied"]


def test_weights_that_two_layers_share_may_be_stored_once(vocabulary: Path, tmp_path: Path) -> None:
    weights = Words(nn.GRU(6, 6), 6, tied=True).state_dict()
    del weights["decoder.weight"]
    torch.save(weights, tmp_path / "model.pt")
    bundle = import_model(tmp_path / "model.pt", tmp_path, "next-word", options(vocabulary=vocabulary))
    np.testing.assert_array_equal(_tensor(bundle, "head.bias"), weights["decoder.bias"].numpy())


def _tensor(bundle: Bundle, name: str) -> Any:
    return reference_step(bundle).network.state_dict()[name].numpy()


def test_modules_in_a_row_are_named_in_their_order(vocabulary: Path, tmp_path: Path) -> None:
    first, second = nn.GRU(6, 8), nn.GRU(8, 5)
    weights = {"embed.weight": torch.randn(9, 6), "out.weight": torch.randn(9, 5), "out.bias": torch.randn(9)}
    weights |= {f"first.{name}": tensor for name, tensor in first.state_dict().items()}
    weights |= {f"second.{name}": tensor for name, tensor in second.state_dict().items()}
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(DataError, match="--map cells=first,second"):
        import_model(tmp_path / "model.pt", tmp_path, "next-word", options(vocabulary=vocabulary))
    told = options(vocabulary=vocabulary, roles={"cells": "first,second"})
    bundle = import_model(tmp_path / "model.pt", tmp_path, "next-word", told)
    assert bundle.config.network["hidden_sizes"] == [8, 5]


def words_graph(kind: str, vocabulary_size: int, attributes: dict[str, Any], extra: list[Any] | None = None) -> Any:
    """An ONNX model tokens [T, B] -> logits [T, B, words], gates in ONNX's order, random weights."""
    rng = np.random.default_rng(1)
    gates, units = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 5

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float32), name)

    stored = [
        weight("table", vocabulary_size, 6),
        weight("w", 1, gates * units, 6),
        weight("r", 1, gates * units, units),
        weight("b", 1, 2 * gates * units),
        weight("matrix", units, vocabulary_size),
        weight("bias", vocabulary_size),
        numpy_helper.from_array(np.array([1]), "axis"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["x"]),
        helper.make_node(kind, ["x", "w", "r", "b"], ["y", "h"], hidden_size=units, **attributes),
        helper.make_node("Squeeze", ["y", "axis"], ["flat"]),
        *(extra or [helper.make_node("Identity", ["flat"], ["between"])]),
        helper.make_node("MatMul", ["between", "matrix"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["steps", "batch"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    ("kind", "attributes", "cell"),
    [
        ("LSTM", {}, "lstm"),
        ("GRU", {"linear_before_reset": 1}, "gru"),
        ("RNN", {}, "rnn-tanh"),
        ("RNN", {"activations": ["Relu"]}, "rnn-relu"),
    ],
)
def test_an_onnx_graph_becomes_a_bundle(
    kind: str, attributes: dict[str, Any], cell: str, vocabulary: Path, tmp_path: Path
) -> None:
    onnx.save(words_graph(kind, len(WORDS), attributes), tmp_path / "model.onnx")
    bundle = import_model(tmp_path / "model.onnx", tmp_path, "next-word", options(vocabulary=vocabulary))
    assert bundle.config.network["cell"] == cell


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("GRU", {}, "linear_before_reset"),
        ("LSTM", {"clip": 3.0}, "clip=3.0"),
        ("LSTM", {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "HardSigmoid"),
        ("RNN", {"activations": ["Elu"]}, "Tanh or Relu"),
        ("RNN", {"direction": "reverse"}, "needs the future"),
    ],
)
def test_onnx_cells_that_bundles_have_not_are_refused(
    kind: str, attributes: dict[str, Any], message: str, vocabulary: Path, tmp_path: Path
) -> None:
    onnx.save(words_graph(kind, len(WORDS), attributes), tmp_path / "model.onnx")
    with pytest.raises(DataError, match=message):
        import_model(tmp_path / "model.onnx", tmp_path, "next-word", options(vocabulary=vocabulary))


def test_a_model_that_computes_something_more_is_refused(vocabulary: Path, tmp_path: Path) -> None:
    extra = [helper.make_node("Sigmoid", ["flat"], ["between"])]
    onnx.save(words_graph("LSTM", len(WORDS), {}, extra), tmp_path / "model.onnx")
    with pytest.raises(DataError, match=r"disagree.*also computes Sigmoid"):
        import_model(tmp_path / "model.onnx", tmp_path, "next-word", options(vocabulary=vocabulary))
    assert not (tmp_path / "mine").exists(), "nothing is written that was not checked"


def test_values_are_predicted_as_the_model_does_in_its_own_units(tmp_path: Path) -> None:
    model = Values(columns=2, targets=1)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    mean, std = torch.tensor([20.0, 1e6]), torch.tensor([4.0, 300.0])
    told = options(columns=["load", "count"], targets=["load"], means=mean.tolist(), stds=std.tolist(), errors=[0.8])
    bundle = import_model(tmp_path / "model.pt", tmp_path, "next-value", told)
    assert bundle.config.values is not None
    assert bundle.config.values.columns == ("load", "count")
    assert "a Gaussian of constant width" in (bundle.folder / CARD_FILE).read_text()

    values = torch.randn(12, 2) * std + mean
    with torch.no_grad():
        expected = model(((values - mean) / std).unsqueeze(0)).squeeze(0) * std[0] + mean[0]
    step = reference_step(bundle)
    assert isinstance(step, ReferenceValueStep)
    state = torch.zeros(1, bundle.config.state_size)
    for t, row in enumerate(values.double()):
        found = step(row.unsqueeze(0), state)
        torch.testing.assert_close(found.locations[0], expected[t].double(), atol=1e-4, rtol=1e-5)
        assert float(found.scales[0]) == pytest.approx(0.8, rel=1e-4)
        if t:
            deviation = (float(row[0]) - float(expected[t - 1])) / 0.8
            surprise = deviation**2 / 2 + np.log(0.8 * np.sqrt(2 * np.pi))
            assert float(found.surprises[0]) == pytest.approx(surprise, rel=1e-3)
        state = found.next_states


@pytest.mark.filterwarnings("ignore")  # torch calls its older exporter deprecated; the other needs one more package
@pytest.mark.parametrize("last_step_alone", [False, True])
def test_what_torch_exports_can_be_imported(last_step_alone: bool, tmp_path: Path) -> None:
    class Exported(Values):
        def forward(self, values: Tensor) -> Tensor:
            predicted = super().forward(values)
            return predicted[:, -1] if last_step_alone else predicted

    file, axes = tmp_path / "model.onnx", {"x": {0: "batch", 1: "steps"}}
    torch.onnx.export(
        Exported().eval(), (torch.randn(1, 7, 1),), file, dynamo=False, input_names=["x"], dynamic_axes=axes
    )
    bundle = import_model(file, tmp_path, "next-value", options(errors=[1.0]))
    assert bundle.config.network["hidden_sizes"] == [5, 5]


def test_the_error_of_a_model_of_values_is_measured(tmp_path: Path) -> None:
    model = Values()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    series = np.sin(np.arange(300) / 4) * 3 + 10
    (tmp_path / "series.csv").write_text("value\n" + "\n".join(map(str, series)))
    told = options(means=[10.0], stds=[3.0], data=[str(tmp_path / "series.csv")])
    bundle = import_model(tmp_path / "model.pt", tmp_path, "next-value", told)
    scaled = torch.tensor((series - 10) / 3).float()
    with torch.no_grad():
        predicted = model(scaled[None, :-1, None]).flatten()
    error = float((predicted - scaled[1:]).square().mean().sqrt()) * 3
    step = reference_step(bundle)
    found = step(torch.tensor([[10.0]], dtype=torch.float64), torch.zeros(1, bundle.config.state_size))
    assert isinstance(step, ReferenceValueStep)
    assert float(found.scales[0]) == pytest.approx(error, rel=1e-3)


def test_a_pickle_of_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(Values(), tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"more than tensors.*state_dict"):
        import_model(tmp_path / "model.pt", tmp_path, "next-value", options())


@pytest.mark.parametrize("name", ["model.onnx", "model.pt", "model.safetensors", "absent.pt"])
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    if name != "absent.pt":
        (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=name):
        import_model(tmp_path / name, tmp_path, "next-value", options())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (Words(nn.LSTM(6, 7, bidirectional=True), 14).state_dict(), "bidirectional"),
        (Words(nn.LSTM(6, 7), 7).state_dict() | {"norm.weight": torch.ones(7)}, "norm.weight.*no place"),
        (Words(nn.LSTM(6, 7), 7).state_dict() | {"other.weight": torch.ones(9, 6)}, "--map embedding=NAME"),
        ({"linear.weight": torch.ones(3, 3)}, "no weights of an LSTM"),
    ],
    ids=["bidirectional", "more-layers", "two-embeddings", "no-cells"],
)
def test_state_dicts_that_bundles_have_no_place_for(
    weights: dict[str, Tensor], message: str, vocabulary: Path, tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(DataError, match=message):
        import_model(tmp_path / "model.pt", tmp_path, "next-word", options(vocabulary=vocabulary))


def test_what_a_file_does_not_tell_is_asked_for(vocabulary: Path, tmp_path: Path) -> None:
    torch.save(Words(nn.LSTM(6, 7), 7).state_dict(), tmp_path / "words.pt")
    torch.save(Values().state_dict(), tmp_path / "values.pt")
    with pytest.raises(ConfigurationError, match="--vocabulary"):
        import_model(tmp_path / "words.pt", tmp_path, "next-word", options())
    with pytest.raises(ConfigurationError, match="--end"):
        import_model(tmp_path / "words.pt", tmp_path, "next-word", options(vocabulary=vocabulary, end="</s>"))
    with pytest.raises(ConfigurationError, match="--error"):
        import_model(tmp_path / "values.pt", tmp_path, "next-value", options())
    with pytest.raises(ConfigurationError, match="reads 1 values a step"):
        import_model(tmp_path / "values.pt", tmp_path, "next-value", options(columns=["a", "b"], errors=[1.0]))


def test_the_command_says_what_it_made(vocabulary: Path, tmp_path: Path) -> None:
    torch.save(Words(nn.LSTM(6, 7), 7).state_dict(), tmp_path / "model.pt")
    flags = ["import", str(tmp_path / "model.pt"), "--task", "next-word", "--vocabulary", str(vocabulary)]
    flags += ["--out", str(tmp_path / "models"), "--name", "mine", "--map", "output=decoder"]
    done = CliRunner().invoke(app, flags)
    assert done.exit_code == 0, done.output
    assert "outputs and the bundle's differ by" in " ".join(done.output.split())
    assert Bundle.load(tmp_path / "models" / "mine" / "1").config.name == "mine"
