"""What a person sees of a run: a progress bar or lines, TensorBoard events, a learning curve."""

import time
from pathlib import Path

from rich.console import Console
from rich.progress import TextColumn, TimeRemainingColumn
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from hiddenstate_models.training.bar import make_bar
from hiddenstate_models.training.loop import Progress, Update

_LINE_SECONDS = 30.0
_SMOOTHING = 0.98


class ConsoleWatcher:
    """A live bar on a terminal; elsewhere a line every half minute. Validation scores are printed in both."""

    def __init__(self, console: Console, *, total_updates: int, epochs: int, unit: str) -> None:
        self._console = console
        self._epochs = epochs
        self._total = total_updates
        self._unit = unit
        self._smoothed: dict[str, float] = {}
        self._time = self._printed = time.monotonic()
        left = TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False)
        self._bar = make_bar(console, *left, transient=False)
        self._task = self._bar.add_task("training", total=total_updates, state="")

    def __enter__(self) -> "ConsoleWatcher":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def updated(self, update: Update, progress: Progress) -> None:
        """Shows smoothed figures and speed."""
        now = time.monotonic()
        speed = update.targets / max(now - self._time, 1e-9)
        self._time = now
        figures = {"loss": update.loss, **update.details, "gradient": update.gradient_norm, f"{self._unit}/s": speed}
        for name, figure in figures.items():
            self._smoothed[name] = _smooth(self._smoothed.get(name), figure)
        description = f"epoch {update.epoch + 1}/{self._epochs}"
        state = "  ".join(f"{name} {_short(figure)}" for name, figure in self._smoothed.items())
        self._bar.update(self._task, completed=update.number, description=description, state=state)
        if not self._console.is_terminal and now - self._printed > _LINE_SECONDS:
            self._printed = now
            left = progress.seconds / update.number * max(self._total - update.number, 0)
            self._console.print(f"{description}  update {update.number:,}/{self._total:,}  {state}  {clock(left)} left")

    def validated(self, progress: Progress) -> None:
        """Prints the epoch's scores."""
        last = progress.history[-1]
        scores = "  ".join(
            f"{name} {value:.4g}" for name, value in last.items() if name not in ("epoch", "training_loss")
        )
        best = "  (best so far)" if progress.best_epoch == last["epoch"] else ""
        averaged = " of averaged weights" if progress.averaged else ""
        self._console.print(
            f"epoch {int(last['epoch']) + 1}: training loss {last['training_loss']:.3f}, "
            f"validation{averaged} {scores}{best}"
        )
        self._time = time.monotonic()


class TensorBoardWatcher:
    """Scalars of every update and validation as TensorBoard event files."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def updated(self, update: Update, _progress: Progress) -> None:
        """Writes an update's scalars."""
        for name, value in (
            ("training/loss", update.loss),
            ("gradient/norm", update.gradient_norm),
            ("gradient/clipped_norm", update.clipped_norm),
            ("training/learning_rate", update.learning_rate),
            *((f"training/{name}", value) for name, value in update.details.items()),
        ):
            self._writer.add_scalar(name, value, update.number)

    def validated(self, progress: Progress) -> None:
        """Writes an epoch's scores and flushes."""
        for name, value in progress.history[-1].items():
            if name != "epoch":
                self._writer.add_scalar(f"validation/{name}", value, progress.update)
        self._writer.flush()


class CurveWatcher:
    """Draws the learning curve after every epoch."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def updated(self, _update: Update, _progress: Progress) -> None:
        """Nothing between epochs."""

    def validated(self, progress: Progress) -> None:
        """Draws training and validation loss by epoch."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        epochs = [int(entry["epoch"]) + 1 for entry in progress.history]
        axes.plot(
            epochs,
            [entry["training_loss"] for entry in progress.history],
            "o-",
            label="training",
            color="#8c8c8c",
        )
        axes.plot(epochs, [entry["loss"] for entry in progress.history], "o-", label="validation", color="#1f6feb")
        axes.axvline(progress.best_epoch + 1, color="#1f6feb", linestyle=":", linewidth=1, label="best")
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss (nats)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(self._path, dpi=120)


def summary_table(rows: dict[str, object]) -> Table:
    """Two columns of facts."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(f"[bold]{name}", f"{value:,}" if isinstance(value, int) else str(value))
    return table


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else _SMOOTHING * old + (1 - _SMOOTHING) * new


def _short(figure: float) -> str:
    return f"{figure:.3f}" if abs(figure) < 10 else f"{figure:,.1f}" if abs(figure) < 1000 else f"{figure:,.0f}"


def clock(seconds: float) -> str:
    """h:mm:ss."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
