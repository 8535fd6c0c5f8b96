"""Loading bundles: what is accepted, and the sentence each broken one is refused with."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from hiddenstate_models.bundle import (
    CONFIG_FILE,
    INT8_WEIGHTS_FILE,
    STEP_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Bundle,
    FileFacts,
    ValueNetwork,
    WordNetwork,
    file_facts,
)
from hiddenstate_models.bundle.onnx_files import external_files
from hiddenstate_models.errors import BundleCorruptError, BundleError, BundleFormatError
from hiddenstate_models.export import random_bundle


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with one bundle of each task."""
    models = tmp_path_factory.mktemp("models")
    random_bundle(models, "next-word")
    random_bundle(models, "next-value", columns=2, targets=[1])
    return models


@pytest.fixture
def word_folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine / "next-word", tmp_path / "models" / "next-word")) / "1"


@pytest.fixture
def value_folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine / "next-value", tmp_path / "models" / "next-value")) / "1"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes config.json."""
    fields = json.loads((folder / CONFIG_FILE).read_text())
    change(fields)
    (folder / CONFIG_FILE).write_text(json.dumps(fields))


def relist(folder: Path, name: str) -> None:
    """Makes config.json agree with a changed file."""
    facts = file_facts(folder / name).model_dump()
    edit(folder, lambda fields: fields["files"].update({name: facts}))


def test_loads_what_was_written(word_folder: Path, value_folder: Path) -> None:
    words = Bundle.load(word_folder)
    assert (words.config.name, words.config.version, words.config.task) == ("next-word", 1, "next-word")
    assert isinstance(words.network, WordNetwork)
    assert words.vocabulary[:3] == ("<unk>", "<eos>", "the")
    assert len(words.vocabulary) == words.network.vocabulary_size
    assert words.config.state_size == 4 * 8 + 1
    assert words.config.parameters == sum(a.size for a in load_file(word_folder / WEIGHTS_FILE).values())
    values = Bundle.load(value_folder)
    assert isinstance(values.network, ValueNetwork)
    assert values.config.values is not None
    assert values.config.values.targets == (1,)
    assert values.vocabulary == ()


def test_float16_weights_take_half_the_place(tmp_path: Path) -> None:
    sizes = {
        dtype: random_bundle(tmp_path, "next-word", name=dtype, dtype=dtype).config.files[WEIGHTS_FILE].bytes
        for dtype in ("float16", "float32")
    }
    assert sizes["float16"] < 0.7 * sizes["float32"]


def test_needs_neither_torch_nor_onnx(word_folder: Path) -> None:
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnxruntime')));"
        "from pathlib import Path; from hiddenstate_models.bundle import Bundle;"
        f"print(Bundle.load(Path({str(word_folder)!r})).config.name)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "next-word"


def test_a_folder_without_config_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleFormatError, match=r"is no bundle: it has no config\.json"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_config_that_is_no_json(word_folder: Path, content: bytes) -> None:
    (word_folder / CONFIG_FILE).write_bytes(content)
    with pytest.raises(BundleFormatError, match="cannot be read as JSON"):
        Bundle.load(word_folder)


@pytest.mark.parametrize("found", [0, 2, None, "1"])
def test_another_format(word_folder: Path, found: object) -> None:
    edit(word_folder, lambda fields: fields.update(format=found))
    with pytest.raises(BundleFormatError, match="this release reads format 1; export the bundle again"):
        Bundle.load(word_folder)


def test_config_that_is_no_object(word_folder: Path) -> None:
    (word_folder / CONFIG_FILE).write_text("[]")
    with pytest.raises(BundleFormatError, match="format None"):
        Bundle.load(word_folder)


def _network(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["network"].update(fields)


CONFIG_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "version": (lambda c: c.update(version=0), "version: Input should be greater than 0"),
    "name with a path": (lambda c: c.update(name="../x"), "name: String should match"),
    "field missing": (lambda c: c.pop("state_size"), "state_size: Field required"),
    "field unknown": (lambda c: c.update(extra=1), "extra: Extra inputs are not permitted"),
    "task unknown": (lambda c: c.update(task="chess"), "task: Input should be"),
    "task of another network": (lambda c: c.update(task="next-value"), "but the network's is 'next-word'"),
    "file outside": (lambda c: c["files"].update({"../x": c["files"][STEP_FILE]}), "String should match"),
    "file not listed": (lambda c: c["files"].pop(STEP_FILE), "does not list step.onnx"),
    "tokenizer not listed": (lambda c: c["files"].pop(TOKENIZER_FILE), "does not list tokenizer.json"),
    "state size": (lambda c: c.update(state_size=32), "state_size is 32, but this network needs 33"),
    "no text": (lambda c: c.pop("text"), "needs the field 'text'"),
    "end token": (lambda c: c["text"].update(end_token=50), "must be below 50"),
    "cell unknown": (
        _network(cell="elman"),
        "network: next-word.cell: Input should be 'none', 'rnn-tanh', 'rnn-relu', 'jordan'",
    ),
    "network field unknown": (_network(zoneout=0.1), "network: next-word.zoneout: Extra inputs are not permitted"),
    "projection of a cell without": (_network(cell="gru", projection=4), "projection is for lstm and jordan"),
    "peepholes of a cell without": (_network(cell="gru", peepholes=True), "peepholes is for lstm; the cell is gru"),
    "Jordan network of two layers": (_network(cell="jordan"), "a Jordan network has one hidden layer"),
    "residual layers unequal": (_network(residual=True, hidden_sizes=[8, 9]), "need layers of one size"),
    "peepholes missing": (_network(peepholes=True), "lacks tensor 'cells.layers.[01].peephole_l0'"),
    "cell other": (_network(cell="gru"), "config.json asks for"),
    "hidden size": (_network(hidden_sizes=[8, 9]), "but config.json asks for"),
    "deeper": (_network(hidden_sizes=[8, 8, 8]), "lacks tensor 'cells.layers.2"),
    "shallower": (_network(hidden_sizes=[8]), "holds the unexpected tensor 'cells.layers.1"),
    "untied": (_network(tied=False), "lacks tensor 'head.weight'"),
    "vocabulary": (_network(vocabulary_size=51), r"encoder.weight has shape \[50, 8\].*asks for \[51, 8\]"),
}


@pytest.mark.parametrize(("change", "sentence"), CONFIG_FAULTS.values(), ids=CONFIG_FAULTS.keys())
def test_config_that_does_not_fit(word_folder: Path, change: Callable[[dict[str, Any]], object], sentence: str) -> None:
    edit(word_folder, change)
    with pytest.raises(BundleCorruptError, match=sentence):
        Bundle.load(word_folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("values"), "needs the field 'values'"),
        (lambda c: c["values"].update(columns=["a"]), "are not the network's"),
        (lambda c: c["values"].update(targets=[0]), "are not the network's"),
        (lambda c: (c["values"].update(targets=[2]), c["network"].update(targets=[2])), "not among the 2 columns"),
        (lambda c: c["network"].update(distribution="gaussian"), "asks for"),
    ],
)
def test_value_config_that_does_not_fit(
    value_folder: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    edit(value_folder, change)
    with pytest.raises(BundleCorruptError, match=sentence):
        Bundle.load(value_folder)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, STEP_FILE, TOKENIZER_FILE])
def test_file_missing_cut_or_changed(word_folder: Path, name: str) -> None:
    path = word_folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(BundleCorruptError, match=f"has {len(whole) - 1} bytes instead of {len(whole)}"):
        Bundle.load(word_folder)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleCorruptError, match="was changed after the bundle was written"):
        Bundle.load(word_folder)
    path.unlink()
    with pytest.raises(BundleCorruptError, match=f"lacks {name}"):
        Bundle.load(word_folder)


def test_a_link_out_of_the_folder_is_not_followed(word_folder: Path, tmp_path: Path) -> None:
    outside = shutil.move(word_folder / WEIGHTS_FILE, tmp_path / "elsewhere")
    (word_folder / WEIGHTS_FILE).symlink_to(outside)
    with pytest.raises(BundleCorruptError, match="points out of the bundle"):
        Bundle.load(word_folder)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_weights_that_are_no_safetensors(word_folder: Path, content: bytes) -> None:
    (word_folder / WEIGHTS_FILE).write_bytes(content)
    relist(word_folder, WEIGHTS_FILE)
    with pytest.raises(BundleCorruptError, match=r"model\.safetensors.*export the bundle again"):
        Bundle.load(word_folder)


def test_weights_shorter_than_their_header_says(word_folder: Path) -> None:
    path = word_folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-4])
    relist(word_folder, WEIGHTS_FILE)
    with pytest.raises(BundleCorruptError, match="is cut short"):
        Bundle.load(word_folder)


def test_weights_of_another_type(word_folder: Path) -> None:
    path = word_folder / WEIGHTS_FILE
    save_file({name: array.astype(np.float64) for name, array in load_file(path).items()}, path)
    relist(word_folder, WEIGHTS_FILE)
    with pytest.raises(BundleCorruptError, match="has dtype F64; it must be F16 or F32"):
        Bundle.load(word_folder)


@pytest.mark.parametrize(
    ("vocabulary", "sentence"),
    [
        (["the"], "is no word-level tokenizer"),
        ({"the": 1, "a": 2}, "does not number its words from 0"),
        ({"the": 0, "a": 1}, "has 2 words, but the network 50"),
    ],
)
def test_vocabulary_that_does_not_fit(word_folder: Path, vocabulary: object, sentence: str) -> None:
    (word_folder / TOKENIZER_FILE).write_text(json.dumps({"model": {"vocab": vocabulary}}))
    relist(word_folder, TOKENIZER_FILE)
    with pytest.raises(BundleCorruptError, match=sentence):
        Bundle.load(word_folder)


@pytest.mark.parametrize("place", [("next-word", "2"), ("other", "1")])
def test_a_bundle_in_the_wrong_place(word_folder: Path, place: tuple[str, str]) -> None:
    moved = word_folder.parents[1].joinpath(*place)
    moved.parent.mkdir(exist_ok=True)
    word_folder.rename(moved)
    with pytest.raises(BundleCorruptError, match="holds version 1 of 'next-word'; move it to next-word/1"):
        Bundle.load(moved)


def test_a_bundle_under_a_name_that_is_no_version(word_folder: Path) -> None:
    moved = word_folder.rename(word_folder.with_name("download"))
    assert Bundle.load(moved).config.version == 1


def _foreign(location: str) -> TensorProto:
    tensor = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def _as_initializer(tensor: TensorProto) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([], "g", [], [], [tensor]))


def _in_a_branch(tensor: TensorProto) -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    branch = helper.make_graph([constant], "branch", [], [])
    choice = helper.make_node("If", ["condition"], [], then_branch=branch, else_branch=branch)
    return helper.make_model(helper.make_graph([choice], "g", [], []))


def _in_a_function(tensor: TensorProto) -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    function = helper.make_function("local", "f", [], ["w"], [constant], [helper.make_opsetid("", 20)])
    return helper.make_model(helper.make_graph([], "g", [], []), functions=[function])


@pytest.mark.parametrize("build", [_as_initializer, _in_a_branch, _in_a_function])
@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "other.bin"])
def test_a_graph_may_read_only_the_bundles_weights(
    word_folder: Path, build: Callable[[TensorProto], onnx.ModelProto], location: str
) -> None:
    (word_folder / STEP_FILE).write_bytes(build(_foreign(location)).SerializeToString())
    relist(word_folder, STEP_FILE)
    with pytest.raises(BundleCorruptError, match=f"reads weights from '{location}'"):
        Bundle.load(word_folder)


@pytest.mark.parametrize("content", [b"\x3a\xff", b"\xff" * 20, b"not a model"])
def test_a_graph_that_is_no_onnx(word_folder: Path, content: bytes) -> None:
    (word_folder / STEP_FILE).write_bytes(content)
    relist(word_folder, STEP_FILE)
    with pytest.raises(BundleCorruptError, match=r"step\.onnx: it is no whole ONNX model"):
        Bundle.load(word_folder)


def test_exported_graphs_read_the_weights_file(word_folder: Path) -> None:
    assert external_files((word_folder / STEP_FILE).read_bytes()) == {WEIGHTS_FILE}


def test_every_refusal_is_a_bundle_error() -> None:
    assert issubclass(BundleFormatError, BundleError)
    assert issubclass(BundleCorruptError, BundleError)


def test_file_facts_know_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_facts(path) == FileFacts(sha256=digest, bytes=3)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.update({"encoder.weight.int8": tensors["encoder.weight.int8"][1:].copy()}),
        lambda tensors: tensors.update({"encoder.weight.scales": tensors["encoder.weight.scales"][1:].copy()}),
        lambda tensors: tensors.update({"encoder.weight.int8": tensors["encoder.weight.int8"].astype(np.float32)}),
        lambda tensors: tensors.update({"head.bias.int8": tensors["encoder.weight.int8"]}),
        lambda tensors: tensors.update({"another.int8": tensors["encoder.weight.int8"]}),
        lambda tensors: tensors.update({"encoder.weight": tensors["encoder.weight.int8"]}),
    ],
)
def test_int8_weights_that_do_not_fit(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    folder = random_bundle(tmp_path, "next-word", int8=True).folder
    tensors = load_file(folder / INT8_WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / INT8_WEIGHTS_FILE)
    relist(folder, INT8_WEIGHTS_FILE)
    with pytest.raises(BundleCorruptError, match=r"does not belong to the network .* export the bundle again"):
        Bundle.load(folder)
