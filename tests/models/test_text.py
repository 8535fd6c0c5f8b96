"""Words, vocabularies and documents."""

import re
from pathlib import Path

import pytest

from hiddenstate_models.data import text
from hiddenstate_models.data.sources import File
from hiddenstate_models.errors import DataError

WIKITEXT = """
 = First Article =

 The well @-@ known dog has 1 @,@ 000 <unk> .

 = = Section = =

 It barks .

 = Second Article =

 The end .
"""
DIALOGUES = "U\tHi there.\nS\tHello, how can I help?\n\nU\tBye.\nS\tGood bye.\n"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    contents = {"wiki": WIKITEXT, "dialogues": DIALOGUES, "plain": "One line.\n\nAnother line.\n"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    return {name: tmp_path / name for name in contents}


def test_documents_are_recognised(files: dict[str, Path]) -> None:
    articles = text.read_documents([File(files["wiki"])])
    assert [article[0].strip() for article in articles] == ["= First Article =", "= Second Article ="]
    assert list(text.read_documents([File(files["dialogues"])])) == [
        ["Hi there.", "Hello, how can I help?"],
        ["Bye.", "Good bye."],
    ]
    assert list(text.read_documents([File(files["plain"])])) == [["One line.", "Another line."]]
    assert list(text.read_documents([File(files["plain"])], "blank-line")) == [["One line."], ["Another line."]]
    assert len(list(text.read_documents([File(files["dialogues"])], "line"))) == 4


def test_vocabulary_is_the_most_frequent_words_with_contiguous_ids(files: dict[str, Path]) -> None:
    tokenizer = text.train_tokenizer(text.read_documents([File(files["wiki"])]), 6, lowercase=True)
    words = text.vocabulary(tokenizer)
    assert len(words) == 6
    assert words[:2] == [text.UNKNOWN, text.END]
    assert {"=", "the", "."} <= set(words)
    assert [tokenizer.token_to_id(word) for word in words] == list(range(6))


def test_encoding_puts_an_end_before_and_after_every_line(files: dict[str, Path]) -> None:
    tokenizer = text.train_tokenizer(text.read_documents([File(files["dialogues"])]), 100, lowercase=True)
    corpus = text.encode(tokenizer, text.read_documents([File(files["dialogues"])]))
    words = text.vocabulary(tokenizer)
    first, second = ([words[i] for i in document] for document in corpus.documents())
    assert first == ["<eos>", "hi", "there", ".", "<eos>", "hello", ",", "how", "can", "i", "help", "?", "<eos>"]
    assert second == ["<eos>", "bye", ".", "<eos>", "good", "bye", ".", "<eos>"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("I don't know.", ["I", "don", "'t", "know", "."]),
        ("well-known", ["well", "-", "known"]),
        ("(3.5%)", ["(", "3", ".", "5", "%", ")"]),
        ("naïve Ōkami 戦場", ["naïve", "Ōkami", "戦場"]),
        ("a <unk> b", ["a", "<unk>", "b"]),
        ("", []),
    ],
)
def test_python_and_the_tokenizer_split_alike(line: str, words: list[str]) -> None:
    assert re.findall(text.WORD_PATTERN, line) == words
    tokenizer = text.train_tokenizer([[line]], 50, lowercase=False)
    assert tokenizer.encode(line).tokens == words


def test_wikitext_joiners_and_case_are_undone() -> None:
    tokenizer = text.train_tokenizer([["well-known 1,000 dog's"]], 50, lowercase=True)
    encode = tokenizer.encode
    assert encode("Well @-@ known 1 @,@ 000 dog’s").tokens == encode("well-known 1,000 dog's").tokens
    assert text.UNKNOWN not in encode("Well @-@ known").tokens


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"empty\.txt does not begin with text"):
        list(text.read_documents([File(tmp_path / "empty.txt")]))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.txt, line 1: byte 0xe9 is no UTF-8"):
        list(text.read_documents([File(tmp_path / "latin.txt")]))
