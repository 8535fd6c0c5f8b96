"""Text as observations: what a word is, the vocabulary, and documents as token ids.

A word is a match of one regular expression that Python and the tokenizers library read alike, so that the SDK,
the server and the training data all split text the same way.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from hiddenstate_models.data.columns import texts_of
from hiddenstate_models.data.sources import Source
from hiddenstate_models.errors import DataError

UNKNOWN = "<unk>"
END = "<eos>"

# A contraction's tail is a word of its own ("don't" is "don" + "'t"), and so is every punctuation mark.
WORD_PATTERN = r"<unk>|'\w+|\w+|[^\w\s]"

_JOINERS = {" @-@ ": "-", " @,@ ": ",", " @.@ ": ".", "’": "'"}
_ARTICLE = re.compile(r"^ = [^=].*[^=] =\s*$")
_TURN = re.compile(r"^\S{1,16}\t")
_BOUNDARIES: dict[str, Callable[[str], object]] = {
    "article": _ARTICLE.match,
    "blank-line": lambda line: not line.strip(),
    "line": lambda _: True,
    "file": lambda _: False,
}
_ENCODE_LINES = 20_000
_LOOKED_AT = 1000
"""Lines or rows that tell what kind of text it is."""


@dataclass(frozen=True)
class Corpus:
    """Documents as one array of token ids; document i is tokens[starts[i] : starts[i + 1]].

    Every document begins with the end-of-document token, so that its first word too is predicted from something.
    """

    tokens: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]

    def documents(self) -> list[npt.NDArray[np.int32]]:
        """Views of the documents, in order."""
        ends = np.append(self.starts[1:], len(self.tokens))
        return [self.tokens[start:end] for start, end in zip(self.starts, ends, strict=True)]


def train_tokenizer(documents: Iterable[list[str]], vocabulary_size: int, *, lowercase: bool) -> Tokenizer:
    """A word-level vocabulary of the most frequent words, with `<unk>` as 0 and `<eos>` as 1."""
    counter = word_tokenizer((), lowercase=lowercase)
    trainer = trainers.WordLevelTrainer(vocab_size=vocabulary_size, show_progress=False)
    counter.train_from_iterator(itertools.chain.from_iterable(documents), trainer)
    special = [UNKNOWN, END]
    words = [*special, *(word for word in vocabulary(counter) if word not in special)][:vocabulary_size]
    return word_tokenizer(words, lowercase=lowercase)


def word_tokenizer(
    words: Sequence[str], *, lowercase: bool, unknown: str = UNKNOWN, pattern: str = WORD_PATTERN
) -> Tokenizer:
    """Looks up words, which are the pattern's matches, by their places; all others are the unknown one."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    steps: list[normalizers.Normalizer] = [normalizers.Replace(old, new) for old, new in _JOINERS.items()]
    if lowercase:
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return tokenizer


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    """The words by id."""
    words = tokenizer.get_vocab()
    return sorted(words, key=words.__getitem__)


def read_documents(sources: Iterable[Source], ends: str = "auto") -> Iterator[list[str]]:
    """The sources' documents, each a list of non-empty lines, read as they are asked for.

    A document ends with its file ("file"), at a "blank-line" or with every "line". "auto": articles of WikiText files
    begin at their titles, dialogues (`speaker<TAB>words` on every line) end at blank lines, any other row of a table
    is a document, and any other file is one. A dialogue's speakers are left out.

    Raises:
        DataError: a source cannot be read as UTF-8 text, or holds no words.
    """
    for source in sources:
        tabular = source.form == "table" or bool(source.columns)
        rows = (row.rstrip("\n").split("\n") for row in texts_of(source)) if tabular else _lines(source)
        first = list(itertools.islice(rows, _LOOKED_AT))
        filled = [line for row in first for line in row if line.strip()]
        if not filled:
            raise DataError(f"{source.name} does not begin with text")
        dialogue = all(map(_TURN.match, filled))
        rule = ends
        if ends == "auto":
            articles = any(map(_ARTICLE.match, filled))
            rule = "blank-line" if dialogue else "article" if articles else "row" if tabular else "file"
        rows = itertools.chain(first, rows)
        if dialogue:
            rows = ([line.split("\t", 1)[-1] for line in row] for row in rows)
        if rule == "row":
            yield from filter(None, ([line for line in row if line.strip()] for row in rows))
        else:
            yield from _split(itertools.chain.from_iterable(rows), _BOUNDARIES[rule])


def encode_in_parts(tokenizer: Tokenizer, documents: Iterable[list[str]], tokens: int = 2**20) -> Iterator[Corpus]:
    """The same as corpora of whole documents, each ended when it has so many tokens; nothing of one is kept."""
    gathered: list[npt.NDArray[np.int32]] = []
    size = 0
    for document in _encoded(tokenizer, documents):
        gathered.append(document)
        size += len(document)
        if size >= tokens:
            yield _together(gathered)
            gathered, size = [], 0
    if gathered:
        yield _together(gathered)


def encode(tokenizer: Tokenizer, documents: Iterable[list[str]]) -> Corpus:
    """Documents as token ids, `<eos>` before the first line and after every line of each."""
    return _together(list(_encoded(tokenizer, documents)))


def _encoded(tokenizer: Tokenizer, documents: Iterable[list[str]]) -> Iterator[npt.NDArray[np.int32]]:
    end = tokenizer.token_to_id(END)
    for batch in _batches(documents):
        encoded = iter(tokenizer.encode_batch_fast([line for lines in batch for line in lines]))
        for lines in batch:
            ids = [end]
            for encoding in itertools.islice(encoded, len(lines)):
                ids += encoding.ids
                ids.append(end)
            yield np.array(ids, np.int32)


def _together(documents: Sequence[npt.NDArray[np.int32]]) -> Corpus:
    starts = np.cumsum([0, *(len(document) for document in documents[:-1])], dtype=np.int64)
    return Corpus(np.concatenate(documents), starts)


def _lines(source: Source) -> Iterator[list[str]]:
    return ([line.removesuffix("\n")] for line in source.lines())


def _split(lines: Iterable[str], boundary: Callable[[str], object]) -> Iterator[list[str]]:
    document: list[str] = []
    for line in lines:
        if document and boundary(line):
            yield document
            document = []
        if line.strip():
            document.append(line)
    if document:
        yield document


def _batches(documents: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    batch: list[list[str]] = []
    lines = 0
    for document in documents:
        batch.append(document)
        lines += len(document)
        if lines >= _ENCODE_LINES:
            yield batch
            batch, lines = [], 0
    if batch:
        yield batch
