"""A training run as a folder: what it was told, its checkpoints, its best weights, its reports.

config.toml            all that the run was told: `train TASK --config` repeats it
run.json               task, network, options, data, the command line
checkpoint/            to resume from
best.safetensors       weights with the best validation loss
tokenizer.json         next-word only
learning-curve.png, gradients.png, gradients.json, events.out.tfevents.*
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from lightning_fabric import Fabric
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hiddenstate_models.errors import DataError
from hiddenstate_models.training.allocator import keep_freed_memory
from hiddenstate_models.training.checkpoint import load_checkpoint, save_checkpoint
from hiddenstate_models.training.failures import memory_explained
from hiddenstate_models.training.loop import Progress, Task, Trainer, Watcher
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.report import ConsoleWatcher, CurveWatcher, TensorBoardWatcher

CHECKPOINT = "checkpoint"

_Saved = TypeVar("_Saved")


@dataclass(frozen=True)
class RunRecord:
    """What a run was told; JSON types, written before the first update."""

    task: str
    network: dict[str, Any]
    training: dict[str, Any]
    data: dict[str, Any]
    """What was read, as it was typed, and how."""
    command: str
    facts: dict[str, Any] = field(default_factory=dict)
    """What the data turned out to hold; a run that is resumed must find the same."""
    parameters: int = 0

    def save(self, folder: Path) -> None:
        """Writes run.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads run.json.

        Raises:
            DataError: the folder holds no run.
        """
        try:
            return cls(**json.loads((folder / "run.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{folder} holds no training run: {error}") from error


def as_saved(kind: type[_Saved], values: Mapping[str, Any], source: Path, *, complete: bool = False) -> _Saved:
    """A dataclass from what a run has saved of it.

    Raises:
        DataError: another version has saved it, with fields that are not known here or, if it has to be `complete`,
            without some that are.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    strange = sorted(values.keys() - known) or sorted(known - values.keys() if complete else ())
    if strange:
        verb = "knew" if strange[0] in values else "lacked"
        folder = source.parent if source.name == CHECKPOINT else source
        raise DataError(
            f"{source} was saved by another version of hiddenstate, which {verb} {', '.join(strange)}: go on with that "
            f"version, or begin anew with the settings in {folder / 'config.toml'}"
        )
    return kind(**values)


def command_line() -> str:
    """This process's command as someone would type it, for the record."""
    return " ".join([Path(sys.argv[0]).name, *(f"'{a}'" if set(a) & set(" *?'\"$") else a for a in sys.argv[1:])])


def train(
    folder: Path,
    network: nn.Module,
    task: Task,
    options: TrainingOptions,
    *,
    fabric: Fabric,
    console: Console,
    resume: bool,
    unit: str,
    max_updates: int | None = None,
    watchers: Sequence[Watcher] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Trains in `folder` until done, or until a signal or `should_stop` asks to: then it saves and returns False."""
    keep_freed_memory()
    leads = fabric.global_rank == 0
    screen = ConsoleWatcher(
        console,
        total_updates=options.epochs * task.lanes.chunks_per_epoch(0),
        epochs=options.epochs,
        unit=unit,
    )
    files = (TensorBoardWatcher(folder), CurveWatcher(folder / "learning-curve.png")) if leads else ()
    with memory_explained(lambda: "before the first update", options):
        trainer = Trainer(network, task, options, fabric=fabric, watchers=(screen, *files, *watchers))
    if resume:
        checkpoint = load_checkpoint(folder / CHECKPOINT)
        fit_weights(network, checkpoint.weights, folder / CHECKPOINT)
        trainer.restore(checkpoint, as_saved(Progress, checkpoint.progress, folder / CHECKPOINT, complete=True))
        console.print(f"{folder} goes on from update {trainer.progress.update:,}")
    with memory_explained(lambda: f"at {trainer.progress.place}", options), screen, _stop_signals() as stopped:
        return trainer.fit(
            on_checkpoint=lambda checkpoint: save_checkpoint(folder / CHECKPOINT, checkpoint) if leads else None,
            on_best=lambda best: save_weights(folder, best) if leads else None,
            should_stop=lambda: bool(stopped) or should_stop(),
            max_updates=max_updates,
        )


def save_weights(folder: Path, network: nn.Module) -> None:
    """Replaces the run's best weights."""
    fresh = folder / "best.safetensors.new"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}, fresh)
    fresh.replace(folder / "best.safetensors")


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The run's best weights.

    Raises:
        DataError: no epoch has been finished yet.
    """
    path = folder / "best.safetensors"
    if not path.exists():
        raise DataError(f"{folder} has no best weights yet: no epoch was finished")
    return load_file(path)


def fit_weights(network: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Gives a network its weights.

    Raises:
        DataError: they are another network's; says how they differ.
    """
    own = network.state_dict()
    for name in own.keys() | weights.keys():
        shapes = [tuple(tensors[name].shape) if name in tensors else "none" for tensors in (weights, own)]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"the weights in {source} are of another network or vocabulary: {name} is {shapes[0]} there and "
                f"{shapes[1]} in the network described beside them. Put the files back that were saved together."
            )
    network.load_state_dict(dict(weights))


@contextmanager
def _stop_signals() -> Iterator[Sequence[int]]:
    """Collects SIGINT and SIGTERM, so that a stop comes between two updates; a second SIGINT is the usual one."""
    received: list[int] = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
