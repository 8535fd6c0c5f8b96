"""How fast the training loop learns beside a plain one: `python -m bench.training --words 10000 --words 33278`.

Both train the same network from the same weights on the same text with the same optimizer, in turns of some updates
each, so that a machine that others use as well treats them alike. At the end both are scored over the full vocabulary.

    torchrun --standalone --nproc-per-node 2 -m bench.training

gives the plain loop as many threads as there are processes, and the training loop as many processes of one thread.
"""

import math
import time
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from lightning_fabric import Fabric
from rich import progress as bars
from rich.console import Console
from torch import nn

from bench.plain_training import Hyperparameters, PlainLoop, PlainModel
from bench.report import table
from hiddenstate_models.data import sources, text
from hiddenstate_models.networks.words import NextWordNetwork
from hiddenstate_models.training.allocator import keep_freed_memory
from hiddenstate_models.training.loop import Progress, Trainer, Update
from hiddenstate_models.training.next_word import NextWordOptions, NextWordTask, mean_loss
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.processes import make_fabric
from hiddenstate_models.training.schedules import learning_rate

MADE_WORDS = 400_000
CLIP_NORM = 0.25


class Turns:
    """One side of the comparison: how many tokens it learnt from in its turns, and how long they took."""

    def __init__(self, name: str, learn: Callable[[], int]) -> None:
        """learn: one turn; tokens it learnt from, over all processes, and 0 after the last update."""
        self.name = name
        self._learn = learn
        self.tokens: list[int] = []
        self.seconds: list[float] = []

    def take(self) -> None:
        """Takes one turn."""
        started = time.perf_counter()
        if learnt := self._learn():
            self.tokens.append(learnt)
            self.seconds.append(time.perf_counter() - started)

    @property
    def speed(self) -> float:
        """Tokens a second, over all turns but the first, in which caches and kernels are made."""
        return sum(self.tokens[1:] or self.tokens) / sum(self.seconds[1:] or self.seconds)


class Unvalidated(NextWordTask):
    """Leaves scores to the comparison, so that no turn has a validation in it."""

    def validate(self, _network: nn.Module) -> dict[str, float]:
        """No score."""
        return {"loss": 0.0}


class Ours:
    """The training loop, some updates at a time."""

    def __init__(
        self, network: NextWordNetwork, task: NextWordTask, options: TrainingOptions, fabric: Fabric, turn: int
    ) -> None:
        self._trainer = Trainer(network, task, options, fabric=fabric, watchers=(self,))
        self._turn = turn
        self._learnt = 0

    @property
    def updates(self) -> int:
        """Updates in all."""
        return self._trainer.total_updates

    def train(self) -> int:
        """One turn; how many tokens were learnt from."""
        before, until = self._learnt, self._trainer.progress.update + self._turn
        self._trainer.fit(on_checkpoint=lambda _: None, on_best=lambda _: None, max_updates=until)
        return self._learnt - before

    def updated(self, update: Update, _progress: Progress, /) -> None:
        """Counts the tokens of an update."""
        self._learnt += update.targets

    def validated(self, _progress: Progress) -> None:
        """Takes no notice."""


def main(
    data: Annotated[list[str] | None, typer.Option(help="Text to learn from; without it, made-up text.")] = None,
    valid: Annotated[list[str] | None, typer.Option(help="Text to score on; without it, every twentieth part.")] = None,
    part: Annotated[float, typer.Option(help="How much of the text is learnt from.", min=0.0, max=1.0)] = 1.0,
    epochs: Annotated[int, typer.Option(help="Passes over the text; the learning rate falls along a cosine.")] = 4,
    words: Annotated[list[int] | None, typer.Option(help="Sizes of the vocabulary; may be given again.")] = None,
    samples: Annotated[int, typer.Option(help="Words sampled an update; 0: the full softmax, in parts.")] = 1024,
    full_epochs: Annotated[int, typer.Option(help="Last epochs of the training loop with the full softmax.")] = 0,
    precision: Annotated[Literal["32-true", "bf16-mixed"], typer.Option(help="Of the training loop.")] = "32-true",
    lanes: Annotated[int, typer.Option(help="Columns of text read side by side.")] = 20,
    hidden: Annotated[str, typer.Option(help="Units of each layer.")] = "200,200",
    rate: Annotated[float, typer.Option(help="Peak learning rate of Adam.")] = 2e-3,
    turn: Annotated[int, typer.Option(help="Updates a turn.")] = 10,
) -> None:
    """Trains a plain loop and the training loop in turns: tokens a second, their ratio, perplexities."""
    documents, held_out = _documents(data or [], valid or [], max(words or [10_000]))
    options = TrainingOptions(
        epochs=epochs,
        lanes=lanes,
        learning_rate=rate,
        clip_norm=CLIP_NORM,
        patience=epochs,
        precision=precision,
        accelerator="cpu",
    )
    fabric = make_fabric(options)
    torch.set_num_threads(1)
    keep_freed_memory()
    console = Console(quiet=fabric.global_rank != 0)
    rows = []
    for size in words or [10_000]:
        settings = NextWordOptions(
            vocabulary=size,
            hidden=hidden,
            embedding=int(hidden.split(",")[-1]),
            output="sampled" if samples else "full",
            samples=samples or 1,
            full_epochs=full_epochs,
        )
        tokenizer = text.train_tokenizer(documents, size, lowercase=False)
        learnt = text.encode(tokenizer, documents[: max(1, round(part * len(documents)))])
        scored = text.encode(tokenizer, held_out)
        size = tokenizer.get_vocab_size()
        rows += _compared(learnt, scored, size, settings, options, fabric, turn, console)
    header = ["words", "loop", "tokens/s", "times as fast", "tokens learnt from", "perplexity", "to plain"]
    console.print(table(header, rows), soft_wrap=True)
    console.print(
        f"{options.precision}, {fabric.world_size} processes of one thread beside {fabric.world_size} threads, "
        f"{lanes} lanes of {options.k1} steps, {epochs} epochs, turns of {turn} updates"
    )


def _compared(
    corpus: text.Corpus,
    validation: text.Corpus,
    size: int,
    words: NextWordOptions,
    options: TrainingOptions,
    fabric: Fabric,
    turn: int,
    console: Console,
) -> list[list[str]]:
    """The two rows of the table for one vocabulary, in the first process."""
    config = words.network(size)
    torch.manual_seed(options.seed)
    network = NextWordNetwork(config)
    task = Unvalidated(corpus, validation, size, options, words)
    task.prepare(network)
    plain = PlainModel(config)
    plain.load_state_dict(as_plain(network))
    ours = Ours(network, task, options, fabric, turn)

    def rate(update: int, updates: int) -> float:
        return learning_rate(options, update=update, total_updates=updates, epoch=0, plateaus=0, steps=options.k1)

    settings = Hyperparameters(options.epochs, options.lanes, options.k1, rate, options.clip_norm)
    loop = PlainLoop(plain, corpus.tokens, settings)
    leads = fabric.global_rank == 0

    def plain_turn() -> int:
        torch.set_num_threads(fabric.world_size)
        learnt = loop.train(turn) if leads else 0
        torch.set_num_threads(1)
        fabric.barrier()
        return learnt

    sides = Turns("plain", plain_turn), Turns("hiddenstate", ours.train)
    columns = (*bars.Progress.get_default_columns()[:2], bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=console) as progress:
        rounds = range(math.ceil(max(ours.updates, loop.updates) / turn))
        for _ in progress.track(rounds, description=f"{size:,} words"):
            for side in sides:
                side.take()
    if not leads:
        return []
    scored = NextWordNetwork(config)
    scored.load_state_dict(as_network(plain, scored))
    speeds = [side.speed for side in sides]
    scores = [math.exp(mean_loss(model.eval(), validation)) for model in (scored, network)]
    return [
        [
            f"{size:,}",
            side.name,
            f"{speed:,.0f}",
            f"{speed / speeds[0]:.2f}",
            f"{sum(side.tokens):,}",
            f"{score:.1f}",
            f"{score / scores[0]:.3f}",
        ]
        for side, speed, score in zip(sides, speeds, scores, strict=True)
    ]


def as_plain(network: NextWordNetwork) -> dict[str, torch.Tensor]:
    """The network's weights under the plain model's names."""
    weights = {"encoder.weight": network.encoder.weight, "decoder.weight": network.encoder.weight}
    weights["decoder.bias"] = network.head.bias
    for name, tensor in network.cells.state_dict().items():
        _, layer, kind = name.split(".")
        weights[f"rnn.{kind.removesuffix('l0')}l{layer}"] = tensor
    return weights


def as_network(plain: PlainModel, network: NextWordNetwork) -> dict[str, torch.Tensor]:
    """The plain model's weights under the network's names."""
    weights = {"encoder.weight": plain.encoder.weight, "head.bias": plain.decoder.bias}
    for name in network.cells.state_dict():
        _, layer, kind = name.split(".")
        weights[f"cells.{name}"] = plain.rnn.get_parameter(f"{kind.removesuffix('l0')}l{layer}")
    return weights


def _documents(data: list[str], valid: list[str], words: int) -> tuple[list[list[str]], list[list[str]]]:
    """Documents to learn from and to score on."""
    documents = list(text.read_documents(sources.expand(data))) if data else _made(words)
    if valid:
        held_out = list(text.read_documents(sources.expand(valid)))
    else:
        held_out, documents = documents[19::20], [one for i, one in enumerate(documents) if (i + 1) % 20]
    return documents, held_out


def _made(words: int) -> list[list[str]]:
    """Text by Zipf's law, in which half of the words are decided by the one before."""
    generator = np.random.default_rng(0)
    chances = 1 / np.arange(1, words + 1)
    drawn = generator.choice(words, MADE_WORDS, p=chances / chances.sum())
    decided = generator.random(MADE_WORDS) < 0.5
    for i in np.flatnonzero(decided[1:]) + 1:
        drawn[i] = (drawn[i - 1] * 7 + 1) % words
    lines = [" ".join(f"w{word}" for word in line) for line in drawn.reshape(-1, 20)]
    return [lines[start : start + 100] for start in range(0, len(lines), 100)]


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
