"""Labelled texts and tagged sentences from files, entities in tags, and the words a model of labels knows."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiddenstate_models.data.entities import Entity, EntityCounts, entities, iob2, may_follow
from hiddenstate_models.data.labelled import (
    TAGGED_WORD_PATTERN,
    LabelledText,
    TaggedSentence,
    names_of,
    read_tagged,
    read_texts,
)
from hiddenstate_models.data.lexicon import SUFFIXES, Lexicon
from hiddenstate_models.data.sentences import PADDING, Sentences
from hiddenstate_models.data.sources import File
from hiddenstate_models.errors import DataError
from hiddenstate_models.spelling import classes, shape


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("label_first", [True, False])
def test_labels_are_found_on_either_side(tmp_path: Path, label_first: bool) -> None:
    pairs = [("good", "a fine film"), ("bad", "dull"), ("good", "lovely , truly")]
    lines = ["\t".join(pair if label_first else pair[::-1]) for pair in pairs]
    path = written(tmp_path / "texts.tsv", "\n".join(lines) + "\n\n")
    assert read_texts([File(path)]) == [LabelledText(text, label) for label, text in pairs]
    other = read_texts([File(path)], "last" if label_first else "first")
    assert [one.label for one in other] == [text for _, text in pairs]


def test_tables_have_columns_by_name(tmp_path: Path) -> None:
    table = pl.DataFrame({"id": [1, 2], "Sentence": ["fine", "dull, really"], "Label": [1, 0]})
    table.write_parquet(tmp_path / "a.parquet")
    table.write_csv(tmp_path / "b.csv")
    expected = [LabelledText("fine", "1"), LabelledText("dull, really", "0")]
    assert read_texts([File(tmp_path / "a.parquet"), File(tmp_path / "b.csv")]) == expected * 2
    table.drop("Label").write_csv(tmp_path / "c.csv")
    with pytest.raises(DataError, match="no column called label or target or class"):
        read_texts([File(tmp_path / "c.csv")])


def test_a_line_without_a_tab_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bad\.tsv, line 2: expected a label and a text"):
        read_texts([File(written(tmp_path / "bad.tsv", "1\tfine\nno label\n"))])


def test_columns_are_read_whatever_marks_entities(tmp_path: Path) -> None:
    iob1 = written(tmp_path / "a.conll", "-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nParis NNP I-NP I-LOC\n"
                   "Rome NNP I-NP B-LOC\n\nThe DT O O\n")  # fmt: skip
    bilou = written(tmp_path / "b.conll", "New York\tB-LOC\nCity\tL-LOC\n \nRome\tU-LOC\n!\tO")
    assert read_tagged([File(iob1), File(bilou)]) == [
        TaggedSentence(("U.N.", "Paris", "Rome"), ("B-ORG", "B-LOC", "B-LOC")),
        TaggedSentence(("The",), ("O",)),
        TaggedSentence(("New York", "City"), ("B-LOC", "I-LOC")),
        TaggedSentence(("Rome", "!"), ("B-LOC", "O")),
    ]


def test_tags_that_mark_nothing_stay(tmp_path: Path) -> None:
    path = written(tmp_path / "pos.conll", "the DT\ncat NN\n")
    assert read_tagged([File(path)]) == [TaggedSentence(("the", "cat"), ("DT", "NN"))]


def test_a_word_without_a_tag_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bad\.conll, line 2: a word without a tag"):
        read_tagged([File(written(tmp_path / "bad.conll", "the O\ncat\n"))])


def test_one_label_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="the only label is 'x'"):
        names_of(["x", "x"])
    assert names_of(["b", "a", "b", "c"]) == ("b", "a", "c")


def conlleval(tags: list[str]) -> set[Entity]:
    """As the script of CoNLL-2000 finds them: where a chunk ends and where one starts, tag by tag."""
    found, start = set(), 0
    pairs = [tuple(tag.split("-", 1)) if tag != "O" else ("O", "") for tag in [*tags, "O"]]
    before = ("O", "")
    for i, (mark, kind) in enumerate(pairs):
        differs = kind != before[1]
        if before[0] != "O" and (mark in "BO" or differs):
            found.add(Entity(start, i, before[1]))
        if mark != "O" and (mark == "B" or before[0] == "O" or differs):
            start = i
        before = (mark, kind)
    return found


TAGS = st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), max_size=12)


@given(TAGS, TAGS)
def test_entities_are_counted_as_the_shared_task_does(one: list[str], other: list[str]) -> None:
    other = (other + ["O"] * len(one))[: len(one)]
    assert set(entities(one)) == conlleval(one)
    counts = EntityCounts.of([one], [other])
    assert counts == (len(conlleval(one)), len(conlleval(other)), len(conlleval(one) & conlleval(other)))
    if counts.right:
        assert counts.f1 == pytest.approx(2 / (1 / counts.precision + 1 / counts.recall))
    else:
        assert counts.f1 == 0


@given(TAGS)
def test_iob2_is_well_formed_and_means_the_same(tags: list[str]) -> None:
    marked = iob2(tags)
    assert set(entities(marked)) == set(entities(tags))
    assert all(may_follow(tag, before) for before, tag in zip([None, *marked], marked, strict=False))


def test_spelling_classes() -> None:
    assert [shape(word) for word in ("Johnson", "U.N.", "1996-08-22", "McDonald", "été", "日本")] == [
        "Aa", "A.A.", "0-0-0", "AaAa", "a", "a",
    ]  # fmt: skip
    assert list(classes("Johnson", (3, 2, 0))) == ["<Aa-son>", "<Aa-on>", "<Aa>"]
    assert list(classes("GO", (3, 2, 0))) == ["<A>"]
    assert list(classes("x-1", (1, 0))) == ["<a-0>"]
    assert list(classes("Johnson", ())) == []


def test_a_lexicon_reads_unknown_words_by_their_spelling() -> None:
    rare = [f"{stem}son" for stem in ("Ander", "John", "Peter", "Wil", "Thom", "Jack")]
    lexicon = Lexicon.learn(["the"] * 9 + ["Paris"] * 3 + rare, size=50, rarest=1, lowercase=False, suffixes=SUFFIXES)
    assert set(rare) | {"<unk>", "<eos>", "<Aa-son>", "<Aa>", "the", "Paris"} <= set(lexicon.words)
    names = [lexicon.words[token] for token in lexicon.tokens(["Robinson", "Rome", "rome", "the", "Johnson"])]
    assert names == ["<Aa-son>", "<Aa>", "<unk>", "the", "Johnson"]
    in_place = dict(zip(lexicon.words, (lexicon.words[token] for token in lexicon.in_place()), strict=True))
    assert in_place["Johnson"] == "<Aa-son>"
    assert in_place["the"] == "<unk>"
    assert in_place["Paris"] == "<Aa>"
    assert in_place["<Aa-son>"] == "<Aa-son>"
    assert in_place["<eos>"] == "<eos>"
    plain = Lexicon.learn(["The", "the"], size=50, rarest=2, lowercase=True, suffixes=())
    assert plain.words == ("<unk>", "<eos>", "the")
    assert plain.tokens(["THE", "cat"]).tolist() == [2, 0]


def test_words_of_tagged_text() -> None:
    import re

    text = "On 1996-08-22, Peter's U.N. post cost $6.50 (well-paid)."
    assert re.findall(TAGGED_WORD_PATTERN, text) == [
        "On", "1996-08-22", ",", "Peter", "'s", "U.N.", "post", "cost", "$", "6.50", "(", "well-paid", ")", ".",
    ]  # fmt: skip


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 6), st.sampled_from([None, 0, 5]))
def test_batches_hold_every_sentence_once(lengths: list[int], lanes: int, seed: int | None) -> None:
    documents = [(np.full(length, i), np.full(length, 100 + i)) for i, length in enumerate(lengths)]
    sentences = Sentences(documents, lanes=lanes, ignored=-100, seed=seed)
    chunks = list(sentences.epoch(3))
    assert len(chunks) == sentences.chunks_per_epoch(3)
    seen = {}
    for chunk in chunks:
        assert chunk.starts.all()
        assert chunk.inputs.shape[1] == lanes
        np.testing.assert_array_equal(chunk.inputs == PADDING, chunk.targets == -100)
        for lane in range(lanes):
            known = chunk.inputs[chunk.inputs[:, lane] != PADDING, lane]
            if len(known):
                seen[int(known[0])] = len(known)
    assert seen == dict(enumerate(lengths))
    again = list(sentences.epoch(3, 1))
    assert len(again) == len(chunks) - 1
    for one, other in zip(chunks[1:], again, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
