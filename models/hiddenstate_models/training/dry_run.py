"""What a run would need, measured on its own first updates; nothing is written."""

import resource
import statistics
import sys
import time
from collections.abc import Iterable
from itertools import pairwise

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor

from hiddenstate_models.training.allocator import keep_freed_memory
from hiddenstate_models.training.checkpoint import Checkpoint
from hiddenstate_models.training.loop import Progress, Trainer, Update
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Prepared
from hiddenstate_models.training.report import clock

MEASURED = 12
"""Updates at most."""
_SECONDS = 30.0
"""After so long fewer updates do, but at least three."""


class _Stopwatch:
    def __init__(self) -> None:
        self.times = [time.monotonic()]
        self.targets: list[int] = []

    def updated(self, update: Update, _progress: Progress, /) -> None:
        self.times.append(time.monotonic())
        self.targets.append(update.targets)

    def validated(self, _progress: Progress) -> None:
        self.times[-1] = time.monotonic()

    def enough(self) -> bool:
        return len(self.targets) >= 3 and self.times[-1] - self.times[0] > _SECONDS


def measure(
    prepared: Prepared, options: TrainingOptions, fabric: Fabric, console: Console, unit: str
) -> dict[str, object]:
    """Trains for a few updates and validates once: what memory and time the whole run takes, for people to read."""
    keep_freed_memory()
    watch, kept = _Stopwatch(), list[Checkpoint]()
    trainer = Trainer(prepared.network, prepared.task, options, fabric=fabric, watchers=[watch])
    with console.status("measuring a few updates ..."):
        trainer.fit(on_checkpoint=kept.append, on_best=lambda _: None, should_stop=watch.enough, max_updates=MEASURED)
    # The first update allocates what the others find.
    durations = [after - before for before, after in pairwise(watch.times)]
    update = statistics.median(durations[1:] or durations)
    started = time.monotonic()
    with console.status("measuring validation ..."), torch.no_grad(), fabric.autocast():
        prepared.task.validate(prepared.network.eval())
    validation = time.monotonic() - started
    expected = trainer.total_updates * update + options.epochs * validation
    optimizer = [value for entry in kept[-1].optimizer["state"].values() for value in entry.values()]
    needed: dict[str, object] = {
        "weights": _megabytes(_bytes(kept[-1].weights.values())),
        "their average": _megabytes(_bytes(kept[-1].average.values())),
        "optimizer": _megabytes(_bytes(value for value in optimizer if isinstance(value, Tensor))),
        "memory": f"{_megabytes(_peak())} at the peak of this process",
        "updates": f"{trainer.total_updates:,} of {update * 1000:,.0f} ms (median of {len(durations[1:])})",
        "speed": f"{statistics.mean(watch.targets) / update:,.0f} {unit}/s",
        "validation": f"{validation:,.1f} s after each of {options.epochs} epochs",
        "expected time": f"{clock(expected)} (h:mm:ss) at most; --patience may end it earlier",
    }
    if fabric.device.type == "cuda":
        needed["memory of the GPU"] = f"{_megabytes(torch.cuda.max_memory_allocated())} at its peak"
    if not kept[-1].average:
        del needed["their average"]
    return needed


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
