"""`hiddenstate type`: the next word, as you type or line by line."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, TextIO

from rich.markup import escape

from hiddenstate import AsyncClient, AsyncSession, HiddenstateError, RewindLimit, Vocabulary, WordPrediction
from hiddenstate.cli.console import Access, batches, expected_words, out, percent, until_interrupted
from hiddenstate.descriptions import vocabulary_of

if TYPE_CHECKING:
    from prompt_toolkit.formatted_text import StyleAndTextTuples

_SUGGESTIONS = 5
_ENDS = (".", "!", "?")
_LONGEST = 20  # words to finish a sentence with
_TEMPERATURE = 0.7
ATTACHED = frozenset(".,;:!?)]}%'’”")
"""Words that begin so are written without a space before."""


@dataclass
class Score:
    """Surprise over words."""

    words: int = 0
    unknown: int = 0
    surprise: float = 0.0

    def add(self, word: str, surprise: float, vocabulary: Vocabulary) -> None:
        """Counts one word."""
        self.words += 1
        self.unknown += word not in vocabulary
        self.surprise += surprise

    @property
    def perplexity(self) -> float:
        """exp of the mean surprise."""
        return math.exp(self.surprise / self.words) if self.words else math.nan

    def __str__(self) -> str:
        if not self.words:
            return "no words"
        words = "1 word" if self.words == 1 else f"{self.words:,} words"
        unknown = f" ({self.unknown:,} unknown to the model)" if self.unknown else ""
        return f"{words}{unknown}, perplexity {self.perplexity:,.1f}"


# line by line


def plain(access: Access, model: str, source: TextIO) -> None:
    """Prints every word with its surprise and what is expected after it, then the perplexity of all."""
    score = Score()
    with access.client() as client:
        vocabulary = vocabulary_of(client.model(model))
        with client.session(model) as session:

            def work() -> None:
                _print_row("word", "surprise", "expected next", style="bold")
                for batch in batches(source):
                    for line in batch:
                        words = vocabulary.split(line)
                        predictions = session.observe_many([*words, vocabulary.word(vocabulary.end_token)])
                        for word, prediction in zip(words, predictions, strict=False):
                            score.add(word, prediction.surprise, vocabulary)
                            shown = word if word in vocabulary else f"{word} (unknown)"
                            _print_row(shown, f"{prediction.surprise:.2f}", expected_words(prediction))

            until_interrupted(work)
    out.print(f"\n{score}", style="bold")


def _print_row(word: str, surprise: str, expected: str, style: str = "") -> None:
    out.print(f"{escape(word):<22} {surprise:>8}   {escape(expected)}", style=style, soft_wrap=True)


# as you type


class Follower:
    """Keeps a session at the finished words of a text that is being edited."""

    def __init__(self, client: AsyncClient, session: AsyncSession, vocabulary: Vocabulary) -> None:
        self._client = client
        self._session = session
        self.vocabulary = vocabulary
        self._fed: list[str] = []
        self._surprises: list[float] = []
        self._earlier = 0  # words of lines that are done
        self.prediction: WordPrediction | None = None

    async def follow(self, text: str) -> None:
        """Observes the words of this line that are finished, and takes back those that are not there any more."""
        await self._go_to([*self._fed[: self._earlier], *self.vocabulary.split(text)])

    async def end_line(self, text: str) -> None:
        """The line is done: its last word and the line's end are observed too."""
        await self.follow(text)
        await self._feed([self.vocabulary.word(self.vocabulary.end_token)])
        self._earlier = len(self._fed)

    async def _go_to(self, words: list[str]) -> None:
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(words, self._fed, strict=False)))
        if kept < len(self._fed):
            kept = await self._go_back(kept)
        await self._feed(words[kept:])

    async def _go_back(self, kept: int) -> int:
        """Takes back what was observed after the first `kept` words; returns how many are left."""
        try:
            prediction = await self._session.rewind(len(self._fed) - kept)
            assert isinstance(prediction, WordPrediction)
            self.prediction = prediction
        except RewindLimit:  # a whole line at once, for instance
            kept = 0
            model = self._session.model
            await self._session.close()
            self._session = await self._client.session(model.name, version=model.version)
            self.prediction = None
        del self._fed[kept:], self._surprises[kept:]
        return kept

    async def finish(self) -> list[str]:
        """How the sentence might go on."""
        stop = [word for word in _ENDS if word in self.vocabulary]
        stop.append(self.vocabulary.word(self.vocabulary.end_token))
        words = [word async for word, _ in self._session.generate(_LONGEST, temperature=_TEMPERATURE, stop=stop)]
        return [word for word in words if not word.startswith("<")]

    async def _feed(self, words: list[str]) -> None:
        if words:
            predictions = await self._session.observe_many(words)
            self.prediction = predictions[-1]
            self._fed += words
            self._surprises += predictions.surprise.tolist()
        elif self.prediction is None:
            prediction = await self._session.peek()
            assert isinstance(prediction, WordPrediction)
            self.prediction = prediction

    def last(self) -> tuple[str, float] | None:
        """The last observed word of this line and its surprise."""
        return (self._fed[-1], self._surprises[-1]) if len(self._fed) > self._earlier else None

    def score(self) -> Score:
        """Of all words; ends of lines are not counted."""
        score = Score()
        end = self.vocabulary.word(self.vocabulary.end_token)
        for word, surprise in zip(self._fed, self._surprises, strict=True):
            if word != end:
                score.add(word, surprise, self.vocabulary)
        return score

    def candidates(self, begun: str) -> list[tuple[str, float | None]]:
        """Likely words that begin so: predictions first, then (without a probability) others of the vocabulary."""
        begun = begun.lower() if self.vocabulary.lowercase else begun
        likely = self.prediction.top if self.prediction else []
        found: list[tuple[str, float | None]] = [
            (word, p) for word, p in likely if word.startswith(begun) and not word.startswith("<")
        ]
        if begun and len(found) < _SUGGESTIONS:
            known = {word for word, _ in found}
            others = (w for w in self.vocabulary.words if w.startswith(begun) and w not in known and w != begun)
            found += [(word, None) for word, _ in zip(others, range(_SUGGESTIONS - len(found)), strict=False)]
        return found


def interactive(access: Access, model: str) -> None:
    """The prompt."""
    asyncio.run(_interactive(access, model))


async def _interactive(access: Access, model: str) -> None:
    async with access.async_client() as client:
        vocabulary = vocabulary_of(await client.model(model))
        follower = Follower(client, await client.session(model), vocabulary)
        await follower.follow("")
        await Prompt(follower).run()
        out.print(str(follower.score()), style="bold")


class Prompt:
    """The line being edited, what is expected after it, and the keys."""

    def __init__(self, follower: Follower) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.styles import Style

        self._follower = follower
        self._changed = asyncio.Event()
        self._finishing = False  # the sentence is to be finished
        self._trouble: HiddenstateError | None = None
        keys = KeyBindings()

        @keys.add("tab")
        def _(_: KeyPressEvent) -> None:
            self._take_first()

        @keys.add("c-g")
        def _(_: KeyPressEvent) -> None:
            self._finishing = True
            if _split(self._buffer.text)[1]:
                self._take_first()
            self._changed.set()

        self._session: PromptSession[str] = PromptSession(
            "› ",
            bottom_toolbar=self._toolbar,
            key_bindings=keys,
            style=Style.from_dict({"bottom-toolbar": "noreverse", "word": "bold", "dim": "#888888"}),
        )
        self._buffer = self._session.default_buffer
        self._buffer.on_text_changed += lambda _: self._changed.set()

    async def run(self) -> None:
        """Until Ctrl-D or Ctrl-C."""
        out.print(
            "Type; [bold]Tab[/bold] takes the first word, [bold]Ctrl-G[/bold] finishes the sentence, "
            "Enter ends a line, Ctrl-D leaves.",
            style="dim",
        )
        while True:
            following = asyncio.create_task(self._follow())
            try:
                line = await self._session.prompt_async()
            except (EOFError, KeyboardInterrupt):
                return
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            if self._trouble:
                raise self._trouble
            await self._follower.end_line(line)

    async def _follow(self) -> None:
        """After every change: observes finished words, then shows what is expected."""
        self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            finished, _ = _split(self._buffer.text)
            try:
                await self._follower.follow(finished)
                if self._finishing:
                    self._finishing = False
                    self._add(await self._follower.finish())
            except HiddenstateError as error:
                self._trouble = error
                self._session.app.exit(result="")
                return
            self._suggest()
            self._session.app.invalidate()

    def _candidates(self) -> list[tuple[str, float | None]]:
        return self._follower.candidates(_split(self._buffer.text)[1])

    def _suggest(self) -> None:
        """Shows the rest of the first candidate behind the cursor."""
        from prompt_toolkit.auto_suggest import Suggestion

        candidates = self._candidates()
        if candidates and self._buffer.document.is_cursor_at_the_end and self._buffer.text:
            begun = _split(self._buffer.text)[1]
            self._buffer.suggestion = Suggestion(candidates[0][0][len(begun) :])

    def _take_first(self) -> None:
        candidates = self._candidates()
        if not candidates:
            return
        self._add([candidates[0][0]], _split(self._buffer.text)[1])

    def _add(self, words: list[str], begun: str = "") -> None:
        """Types words, the first of which has `begun`."""
        for word in words:
            if not begun and word[0] in ATTACHED and self._buffer.text.endswith(" "):
                self._buffer.delete_before_cursor()
            self._buffer.insert_text(word[len(begun) :] + " ")
            begun = ""

    def _toolbar(self) -> StyleAndTextTuples:
        parts: StyleAndTextTuples = []
        for word, probability in self._candidates():
            parts.append(("class:word", f" {word}"))
            parts.append(("class:dim", f" {percent(probability)} " if probability is not None else " "))
        last = self._follower.last()
        if last is not None:
            parts.append(("class:dim", f"  ·  “{last[0]}” surprised by {last[1]:.1f} nats"))
            parts.append(("class:dim", f"  ·  perplexity {self._follower.score().perplexity:,.0f}"))
        return parts


def _split(text: str) -> tuple[str, str]:
    """What is finished of a line, and the word that is begun."""
    finished, space, begun = text.rpartition(" ")
    return finished + space, begun
