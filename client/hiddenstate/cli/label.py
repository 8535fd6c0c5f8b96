"""`hiddenstate label`: what a model says of lines of text, of each as a whole or of every word."""

from __future__ import annotations

from typing import TextIO

from rich.markup import escape

from hiddenstate import Session
from hiddenstate.cli.console import Access, batches, fail, out, until_interrupted

_DOUBTFUL = 0.5  # a label less probable than this is shown dim


def label(access: Access, model: str, source: TextIO) -> None:
    """Prints every word with a label: of the line up to there, or of the word. Every line is a text of its own."""
    with access.client() as client:
        description = client.model(model)
        if not description.label_names:
            raise fail(f"{model} labels nothing; name a model of labels with --model")
        show = _tags if description.task == "tagging" else _verdicts
        with client.session(model) as session:

            def work() -> None:
                for batch in batches(source):
                    for line in batch:
                        if line.strip():
                            show(session, line)

            until_interrupted(work)


def _tags(session: Session, line: str) -> None:
    for word, tag, probability in session.tag(line):
        _print_row(word, tag, probability, bold=tag != "O")
    out.print()


def _verdicts(session: Session, line: str) -> None:
    vocabulary = session.model.vocabulary
    assert vocabulary is not None
    words = vocabulary.split(line)
    with session.fork() as copy:
        verdicts = list(copy.label(words))
    for word, verdict in zip(words, verdicts, strict=True):
        _print_row(word, verdict.label, verdict.probability, bold=verdict is verdicts[-1])
    out.print()


def _print_row(word: str, label: str, probability: float, *, bold: bool) -> None:
    style = "bold" if bold else "dim" if probability < _DOUBTFUL else ""
    out.print(f"{escape(word):<22} {escape(label):<16} {probability:>6.1%}", style=style, soft_wrap=True)
