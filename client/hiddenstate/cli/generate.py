"""`hiddenstate generate`: a text that a next-word model goes on with, word by word."""

from __future__ import annotations

import sys

from hiddenstate.cli.console import Access, until_interrupted
from hiddenstate.cli.type import ATTACHED
from hiddenstate.descriptions import vocabulary_of


def generate(
    access: Access,
    model: str,
    text: str,
    *,
    words: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
) -> None:
    """Prints `text` and how the model goes on with it, as the words come, up to the end of a document."""
    with access.client() as client:
        vocabulary = vocabulary_of(client.model(model))
        end, unknown = (vocabulary.word(token) for token in (vocabulary.end_token, vocabulary.unknown_token))
        with client.session(model) as session:
            if vocabulary.split(text):
                session.observe(text)

            def work() -> None:
                sys.stdout.write(text.rstrip())
                begun = bool(text.strip())
                continuation = session.generate(
                    words, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=end
                )
                for word, _ in continuation:
                    if word != end:
                        shown = "…" if word == unknown else word
                        sys.stdout.write(f" {shown}" if begun and word[0] not in ATTACHED else shown)
                        sys.stdout.flush()
                        begun = True
                sys.stdout.write("\n")

            until_interrupted(work)
