"""What is named as data: files, globs, tables, standard input, data sets of Hugging Face."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from hiddenstate_models.cli.app import app
from hiddenstate_models.data import text
from hiddenstate_models.data.labelled import LabelledText, TaggedSentence, read_tagged, read_texts
from hiddenstate_models.data.series import read_series
from hiddenstate_models.data.sources import File, StandardInput, expand, files
from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.experiments.files import text_of
from hiddenstate_models.training.runs import load_run

ROWS = {"id": ["a", "b"], "text": ["One two.\nThree.", "Four"], "label": [1, 0], "size": [2.5, None]}
FEATURES = datasets.Features(
    {
        "sentence": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["bad", "good"]),
        "tokens": datasets.List(datasets.Value("string")),
        "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"])),
    }
)
EXAMPLES = {
    "sentence": ["fine film", "dull", "unlabelled"],
    "label": [1, 0, -1],
    "tokens": [["Ann", "left"], ["He", "too"], ["!"]],
    "ner_tags": [[1, 0], [0, 0], [0]],
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    pl.DataFrame(ROWS).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two splits, as `save_to_disk` leaves it."""
    folder = tmp_path_factory.mktemp("sets") / "saved"
    whole = datasets.Dataset.from_dict(EXAMPLES, features=FEATURES)
    datasets.DatasetDict(train=whole, test=whole.select([1])).save_to_disk(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files that the library makes a data set of, as it does of one on the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    folder.mkdir()
    pl.DataFrame(ROWS).write_parquet(folder / "train.parquet")
    pl.DataFrame(ROWS)[:1].write_parquet(folder / "test.parquet")
    return folder


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def pipe(content: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))

    return pipe


def documents(name: str, ends: str = "auto") -> list[list[str]]:
    return list(text.read_documents(expand([name]), ends))


def test_globs_expand_in_order_and_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "c.csv", "deep/er/d.txt", "e[1].txt"):
        (tmp_path / name).write_text("x")
    found = expand([f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"])
    assert [source.label for source in found] == ["a.txt", "b.txt", "e[1].txt"]
    assert [path.name for path in files([f"{tmp_path}/**/*.txt"])] == ["a.txt", "b.txt", "d.txt", "e[1].txt"]
    assert expand([f"{tmp_path}/e[1].txt"]) == [File(tmp_path / "e[1].txt")]


def test_a_home_folder_is_found_in_quotes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    assert expand(["~/*.txt"]) == [File(tmp_path / "a.txt")]


def test_what_was_named_can_be_named_again(table: Path, saved: Path) -> None:
    hub = ("hf:glue,sst2:train[:5%]:sentence,label", "hf:x:y")
    for name in (f"{table}:text,label", f"{saved}:test:sentence", *hub, "-"):
        (source,) = expand([name])
        assert source.name == name
        assert expand([source.name]) == [source]


def test_a_name_may_hold_colons(tmp_path: Path) -> None:
    path = tmp_path / "12:30.parquet"
    pl.DataFrame(ROWS).write_parquet(path)
    assert expand([str(path)]) == [File(path)]
    assert expand([f"{path}:size"]) == [File(path, ("size",))]


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("*.txt", "no file matches .*txt' in "),
        ("folder", "is a folder; name the files in it, such as '.*/folder/\\*.txt'"),
        ("plain:column", "plain is no table of which 'column' could be a column"),
        ("hf:", "names no data set; that is done by hf:NAME"),
        ("saved:valid", "has no split 'valid'; it has test, train"),
    ],
)
def test_what_names_nothing_is_told(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, complaint: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("x")
    (tmp_path / "saved").symlink_to(saved)
    monkeypatch.chdir(tmp_path)
    named = pattern if pattern.startswith("hf:") else f"{tmp_path}/{pattern}"
    with pytest.raises(DataError, match=complaint):
        expand([named])


def test_rows_of_a_table_are_documents(table: Path) -> None:
    assert documents(str(table)) == [["One two.", "Three."], ["Four"]]
    assert documents(str(table), "file") == [["One two.", "Three.", "Four"]]
    assert documents(f"{table}:id") == [["a"], ["b"]]
    table.with_suffix(".csv").write_text('id,words\n1,"hello, you"\n')
    assert documents(f"{table.with_suffix('.csv')}:words") == [["hello, you"]]


def test_rows_that_are_lines_of_articles_are_put_together(tmp_path: Path) -> None:
    """As WikiText is laid out on the Hub: a line a row."""
    lines = ["", " = First = \n", "", " It begins . \n", " = = Part = = \n", "", " = Second = \n", " The end . \n"]
    pl.DataFrame({"text": lines}).write_parquet(tmp_path / "wiki.parquet")
    found = [[line.strip() for line in document] for document in documents(str(tmp_path / "wiki.parquet"))]
    assert found == [["= First =", "It begins .", "= = Part = ="], ["= Second =", "The end ."]]


def test_documents_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    """The byte that is no text lies far behind the first document."""
    (tmp_path / "long.txt").write_bytes(b"word\n\n" * 2000 + b"\xff\n")
    found = text.read_documents([File(tmp_path / "long.txt")], "blank-line")
    assert next(found) == ["word"]
    with pytest.raises(DataError, match="line 4001: byte 0xff"):
        list(found)


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        (":wrong", r"has no column 'wrong'; its columns are id \(String\), text"),
        (":label", r"column 'label' holds Int64, and text is needed; its columns are"),
        (":text,label", "2 columns are asked for, and 1 column can be used"),
    ],
)
def test_columns_that_will_not_do_are_told(table: Path, column: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        documents(f"{table}{column}")


def test_a_table_without_text_or_rows_is_told(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet has no column with text; its columns are x \(Int64\)"):
        documents(str(tmp_path / "x.parquet"))
    pl.DataFrame({"text": []}, schema={"text": pl.String}).write_parquet(tmp_path / "empty.parquet")
    for read in (read_texts, text.read_documents, read_series):
        with pytest.raises(DataError, match=r"empty\.parquet has no rows"):
            list(read(expand([str(tmp_path / "empty.parquet")])))
    (tmp_path / "none.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"cannot read .*none\.parquet"):
        documents(str(tmp_path / "none.parquet"))


def test_empty_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    source = [File(tmp_path / "empty.txt")]
    with pytest.raises(DataError, match=r"empty\.txt holds no text with a label"):
        read_texts(source)
    with pytest.raises(DataError, match=r"empty\.txt holds no words with tags"):
        read_tagged(source)
    with pytest.raises(DataError, match=r"empty\.txt has no rows"):
        read_series(source)


def test_columns_of_values_are_chosen(table: Path) -> None:
    (series,) = read_series(expand([f"{table}:si*"]), columns=("label",))
    assert series.name == "rows/size"
    np.testing.assert_array_equal(series.values[:, 0], [2.5, np.nan])
    with pytest.raises(DataError, match="row 1, column 'text': 'One two"):
        read_series(expand([f"{table}:text"]))
    pl.DataFrame({"x": [1, 2], "list": [[1], [2]]}).write_parquet(table)
    assert [one.name for one in read_series([File(table)])] == ["rows/x"]
    with pytest.raises(DataError, match="row 1, column 'list'"):
        read_series([File(table, ("list",))])


def test_standard_input_is_text_labels_or_values(piped: Callable[[str], None]) -> None:
    piped("first\n\nsecond\n")
    assert documents("-", "blank-line") == [["first"], ["second"]]
    assert documents("-", "blank-line") == [["first"], ["second"]], "asked for again"
    piped("good\tfine\nbad\tdull\n")
    assert len(read_texts([StandardInput()])) == 2
    piped("Ann B-PER\n")
    assert read_tagged([StandardInput()]) == [TaggedSentence(("Ann",), ("B-PER",))]
    piped("1\n2.5\n-3e1\n")
    assert [one.values[:, 0].tolist() for one in read_series([StandardInput()])] == [[1, 2.5, -30]]
    piped("a,b\n1,2\n3,4\n")
    assert [one.name for one in read_series([StandardInput()])] == ["standard input/a", "standard input/b"]
    piped("a,b\n1,2\n3,4,5\n")
    with pytest.raises(DataError, match="cannot read -: line 3 has 3 fields where the header has 2"):
        read_series([StandardInput()])
    piped(" \n")
    with pytest.raises(DataError, match="standard input is empty"):
        documents("-")


def test_standard_input_is_refused_where_it_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="read from files only"):
        files(["-"])
    with pytest.raises(DataError, match="standard input does not allow"):
        text_of(["-"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="cannot be shared by 2 processes: write it into a file"):
        expand(["-"])


def test_a_saved_data_set_has_text_labels_and_tags(saved: Path) -> None:
    assert documents(f"{saved}:test") == [["dull"]]
    assert documents(str(saved / "test")) == [["dull"]]
    assert documents(f"{saved}::sentence") == [["fine film"], ["dull"], ["unlabelled"]]
    assert read_texts(expand([str(saved)])) == [LabelledText("fine film", "good"), LabelledText("dull", "bad")]
    assert read_tagged(expand([f"{saved}:train:tokens,ner_tags"])) == [
        TaggedSentence(("Ann", "left"), ("B-PER", "O")),
        TaggedSentence(("He", "too"), ("O", "O")),
        TaggedSentence(("!",), ("O",)),
    ]


def test_words_and_tags_must_be_as_many(tmp_path: Path) -> None:
    pl.DataFrame({"tokens": [["a"], ["b", "c"]], "tags": [["O"], ["O"]]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet, row 2: every word must have a tag"):
        read_tagged([File(tmp_path / "x.parquet")])


def test_a_data_set_of_the_hub_is_loaded_by_split_and_column(hub: Path) -> None:
    assert documents(f"hf:{hub}") == [["One two.", "Three."], ["Four"]]
    assert documents(f"hf:{hub}:test:id") == [["a"]]
    assert documents(f"hf:{hub}:train[1:]") == [["Four"]]
    (series,) = read_series(expand([f"hf:{hub}::size"]))
    assert series.values[0, 0] == 2.5
    with pytest.raises(DataError, match=r'cannot load hf:.*:valid: Unknown split "valid"'):
        documents(f"hf:{hub}:valid")


def test_a_missing_library_is_told_with_the_command(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in (str(saved), "hf:imdb"):
        with pytest.raises(DataError, match=r"pip install 'hiddenstate\[datasets\]'"):
            documents(name)


def test_a_run_learns_from_a_pipe_and_is_scored_on_a_data_set(tmp_path: Path) -> None:
    lines = "\n".join(f"{'good' if i % 2 else 'bad'}\t{'fine' if i % 2 else 'dull'} film {i % 5}" for i in range(60))
    folder = tmp_path / "run"
    sizes = "--epochs 1 --lanes 8 --hidden 4 --embedding 4 --characters 0 --accelerator cpu"
    command = ["train", "classification", "--data", "-", "--out", str(folder), *sizes.split()]
    done = CliRunner().invoke(app, command, input=lines, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert load_run(folder).record.data["training"] == ["-"]
    with pytest.raises(DataError, match="nothing to evaluate on: name files with --data"):
        CliRunner().invoke(app, ["evaluate", str(folder)], catch_exceptions=False)
    examples = datasets.Dataset.from_dict({"text": ["fine film", "dull"], "label": ["good", "bad"]})
    examples.save_to_disk(tmp_path / "saved")
    scored = CliRunner().invoke(
        app, ["evaluate", str(folder), "--data", str(tmp_path / "saved"), "--json"], catch_exceptions=False
    )
    assert scored.exit_code == 0
    assert str(tmp_path / "saved") in scored.stdout
