"""The training loop: truncated back-propagation through time over contiguous lanes.

Every k1 steps the network is updated by the loss of those steps, its gradient flowing back through the last k2. The
state is carried from window to window, detached, and reset where a lane begins a document. All randomness is a
function of (seed, update, rank), and the order of the data one of (seed, epoch), so that a resumed run repeats to
the bit what an uninterrupted one does.
"""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hiddenstate_models.data.lanes import Chunk, Source
from hiddenstate_models.errors import DataError, TrainingError
from hiddenstate_models.training.averaging import WeightAverage, stopped_improving
from hiddenstate_models.training.checkpoint import Checkpoint
from hiddenstate_models.training.clipping import clip_gradients
from hiddenstate_models.training.denormals import denormals_as_zero
from hiddenstate_models.training.failures import check_finite, diverged
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.regulariser import gradient_norm_penalty, recording
from hiddenstate_models.training.schedules import learning_rate


class Network(Protocol):
    """What the loop needs of a network."""

    def initial_state(self, batch: int) -> Tensor:
        """State [batch, state_size] before a document's first step: zeros."""
        ...

    def __call__(self, sequence: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """sequence [T, B, ...], state -> outputs [T, B, ...], state.

        Where the data's chunks have `places`, they are a third argument, and outputs are [S, B, ...]. A network that is
        `taught` has the targets [T, B] in that place in training.
        """
        ...


class Task(Protocol):
    """What is being learnt: data, loss and validation."""

    @property
    def lanes(self) -> Source:
        """The data."""
        ...

    def loss(self, network: nn.Module, outputs: Any, targets: Tensor, epoch: int, /) -> Tensor:
        """Summed loss of targets [T, B, ...] (where chunks have places [S, B, ...]) given outputs, the same each."""
        ...

    def count(self, chunk: Chunk) -> int:
        """Targets of a chunk that the loss is about."""
        ...

    def details(self, loss: float, /) -> dict[str, float]:
        """What to show of the last update beside its mean loss."""
        ...

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Scores on held-out data; "error", where there is one, or else "loss" decides which epoch was best."""
        ...


def decisive(scores: Mapping[str, float]) -> float:
    """The score that says which epoch, and which of two runs, is better: the lower."""
    return scores.get("error", scores["loss"])


@dataclass
class Progress:
    """Where a run is; saved with every checkpoint."""

    epoch: int = 0
    position: int = 0
    """Chunks of this epoch already learnt from."""
    update: int = 0
    best_loss: float = math.inf
    best_epoch: int = -1
    plateaus: int = 0
    """Epochs that brought no better validation loss."""
    averaging_since: int | None = None
    """The first epoch whose weights are averaged; None: not yet, or never."""
    averaged: int = 0
    """Updates whose weights are in the average."""
    epoch_loss: float = 0.0
    epoch_count: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    """An entry per finished epoch: training loss and validation scores."""
    finished: bool = False
    """All epochs are done, or patience is at its end."""

    @property
    def place(self) -> str:
        """For messages."""
        return f"update {self.update} (epoch {self.epoch + 1})"


@dataclass(frozen=True)
class Update:
    """One optimizer step, for those who watch."""

    number: int
    epoch: int
    loss: float
    """Mean over the targets, in nats."""
    details: dict[str, float]
    """The task's own figures, such as perplexity."""
    targets: int
    gradient_norm: float
    """Global norm before clipping."""
    clipped_norm: float
    """Global norm after clipping."""
    learning_rate: float


class Watcher(Protocol):
    """Hears what happens during training; see `report`."""

    def updated(self, update: Update, progress: Progress, /) -> None: ...

    def validated(self, progress: Progress) -> None: ...


class Part(NamedTuple):
    """This process's lanes of a chunk."""

    inputs: Tensor
    """[T, B, ...]"""
    starts: Tensor
    """[B]"""
    more: tuple[Any, ...] = ()
    """What the network is told besides: the steps that outputs are asked for, or the targets [T, B]."""


class WindowLoss(nn.Module):
    """A window's forward pass as one module, so that data parallelism and mixed precision wrap all of it."""

    def __init__(self, network: nn.Module, task: Task, *, regularised: bool) -> None:
        super().__init__()
        self.network = network
        self._task = task
        self._regularised = regularised

    def forward(
        self, window: Sequence[Part], targets: Tensor, state: Tensor, epoch: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Chunks in order, targets of the last one, state before the first.

        Returns the last chunk's summed loss, the state after the first chunk, and the regulariser if asked for.
        """
        after_first: Tensor | None = None
        with recording(self.network) if self._regularised else nullcontext() as recorded:
            for inputs, starts, more in window:
                outputs, state = self.network(inputs, state.masked_fill(starts.unsqueeze(1), 0), *more)
                after_first = state if after_first is None else after_first
        assert after_first is not None
        loss = self._task.loss(self.network, outputs, targets, epoch)
        return loss, after_first.detach(), None if recorded is None else gradient_norm_penalty(loss, recorded)


class Trainer:
    """Fits a network to a task; one process of possibly several (lightning-fabric's DDP), lanes shared out by rank."""

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        options: TrainingOptions,
        *,
        fabric: Fabric,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        if options.lanes % fabric.world_size:
            raise TrainingError(f"{options.lanes} lanes cannot be shared by {fabric.world_size} processes equally")
        self.progress = Progress(averaging_since=0 if options.average in ("ema", "asgd") else None)
        self._task = task
        self._options = options
        self._fabric = fabric
        self._watchers = watchers
        self._network = network
        optimizer = make_optimizer(network, options)
        self._learner, self._optimizer = fabric.setup(
            WindowLoss(network, task, regularised=options.gradient_regulariser > 0), optimizer
        )
        self._average = None if options.average == "none" else WeightAverage(network, options)
        self._local_lanes = options.lanes // fabric.world_size
        self._state = self._fresh_state()
        self._updates = options.epochs * task.lanes.chunks_per_epoch(0)
        self.total_updates = self._updates

    @denormals_as_zero()
    def fit(
        self,
        *,
        on_checkpoint: Callable[[Checkpoint], None],
        on_best: Callable[[nn.Module], None],
        should_stop: Callable[[], bool] = lambda: False,
        max_updates: int | None = None,
    ) -> bool:
        """Trains until the epochs are done or validation stops improving; True when finished, False when stopped.

        `on_checkpoint` is called every `checkpoint_minutes`, after every epoch and before returning early.

        Raises:
            DivergenceError: the loss is no number any more; the last checkpoint is from before.
        """
        saved = time.monotonic()
        stopping = False
        while not self.progress.finished:
            for window in self._windows():
                if stopping or self.progress.update == max_updates:
                    on_checkpoint(self.checkpoint())
                    return False
                due = time.monotonic() - saved > self._options.checkpoint_minutes * 60
                stopping, due = self._update(window, should_stop(), due)
                if due:
                    on_checkpoint(self.checkpoint())
                    saved = time.monotonic()
            if self._end_epoch():
                on_best(self.best_guess)
            on_checkpoint(self.checkpoint())
        return True

    @property
    def best_guess(self) -> nn.Module:
        """What is validated and kept: the average of the weights as soon as there is one, until then the weights."""
        return self._average.network if self._average and self.progress.averaged else self._network

    def checkpoint(self) -> Checkpoint:
        """The run as it stands.

        Raises:
            DivergenceError: some weight is no finite number.
        """
        check_finite(self._network, f"at {self.progress.place}")
        with warnings.catch_warnings():
            # Lightning still gathers by a function that torch wants replaced.
            warnings.filterwarnings("ignore", message=r"torch\.distributed\.nn\.functional\.all_gather")
            states = cast(Tensor, self._fabric.all_gather(self._state))
        return Checkpoint(
            weights=self._network.state_dict(),
            average=self._average.network.state_dict() if self._average else {},
            optimizer=self._optimizer.state_dict(),
            state=states.reshape(self._options.lanes, self._state.shape[1]),
            progress=asdict(self.progress),
        )

    def restore(self, checkpoint: Checkpoint, progress: Progress) -> None:
        """Goes on from a checkpoint of a run with the same options and data, and how far it says that run was.

        Raises:
            DataError: the lanes' states are of another size.
        """
        expected = [self._options.lanes, self._state.shape[1]]
        saved = list(checkpoint.state.shape)
        if saved != expected:
            raise DataError(
                f"the checkpoint holds states of {saved} numbers, lanes by size, where this network has {expected}: "
                "another version of hiddenstate has saved it"
            )
        self._network.load_state_dict(checkpoint.weights)
        if self._average:
            self._average.network.load_state_dict(checkpoint.average)
        self._optimizer.load_state_dict(checkpoint.optimizer)
        own = slice(self._fabric.global_rank * self._local_lanes, (self._fabric.global_rank + 1) * self._local_lanes)
        self._state = checkpoint.state[own].to(self._fabric.device)
        self.progress = progress
        self.progress.finished = self._finished()

    def _fresh_state(self) -> Tensor:
        state = cast(Network, self._network).initial_state(self._local_lanes)
        return torch.zeros_like(state, device=self._fabric.device)

    def _finished(self) -> bool:
        progress = self.progress
        if progress.epoch >= self._options.epochs:
            return True
        if self._options.average == "nt-asgd" and progress.averaging_since is None:
            return False
        last_good = max(progress.best_epoch, (progress.averaging_since or 0) - 1)
        return progress.epoch - 1 - last_good >= self._options.patience

    def _windows(self) -> Iterator[list[Chunk]]:
        """This epoch's windows from where the run is: the last k2 / k1 chunks, fewer at an epoch's beginning."""
        length = self._options.k2 // self._options.k1
        kept = min(self.progress.position, length - 1)
        window: deque[Chunk] = deque(maxlen=length)
        for i, chunk in enumerate(self._task.lanes.epoch(self.progress.epoch, self.progress.position - kept)):
            window.append(chunk)
            if i >= kept:
                yield list(window)

    def _update(self, window: list[Chunk], *wishes: bool) -> list[bool]:
        """Learns from a window; which of the wishes any process has, so that all act on them together."""
        options, progress = self._options, self.progress
        started = time.monotonic()
        torch.manual_seed(hash((options.seed, progress.update, self._fabric.global_rank)) % 2**63)
        rate = learning_rate(
            options,
            update=progress.update,
            total_updates=self.total_updates,
            epoch=progress.epoch,
            plateaus=progress.plateaus,
            steps=len(window[-1].inputs),
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        count = self._task.count(window[-1])
        parts = [self._part(chunk) for chunk in window]
        total, after_first, penalty = self._learner(parts, self._local(window[-1].targets), self._state, progress.epoch)
        # Data parallelism averages gradients over processes; the loss is a mean over all lanes' targets.
        loss = total * (self._fabric.world_size / max(count, 1))
        self._optimizer.zero_grad(set_to_none=True)
        self._fabric.backward(loss if penalty is None else loss + options.gradient_regulariser * penalty)
        norm, clipped = clip_gradients(self._network, options)
        said = torch.tensor([loss.detach(), 0.0 if penalty is None else penalty.detach(), *wishes], device=loss.device)
        mean, omega, *shares = cast(Tensor, self._fabric.all_reduce(said, reduce_op="mean")).tolist()
        if not math.isfinite(mean) or not math.isfinite(norm):
            raise diverged(
                f"the loss or its gradient is no finite number at {progress.place}: "
                f"loss {mean:.4g}, gradient norm {norm:.4g}"
            )
        self._optimizer.step()
        if self._average and progress.averaging_since is not None:
            self._average.add(self._network, progress.averaged)
            progress.averaged += 1
        if len(window) == options.k2 // options.k1:
            self._state = after_first
        progress.position += 1
        progress.update += 1
        progress.epoch_loss += mean * count
        progress.epoch_count += count
        progress.seconds += time.monotonic() - started
        details = self._task.details(mean) | ({} if penalty is None else {"penalty": omega})
        update = Update(progress.update, progress.epoch, mean, details, count, norm, clipped, rate)
        for watcher in self._watchers:
            watcher.updated(update, progress)
        return [share > 0 for share in shares]

    def _end_epoch(self) -> bool:
        """Validates, writes history, moves to the next epoch; True when this one was the best."""
        progress = self.progress
        self._network.eval()
        with torch.no_grad(), self._fabric.autocast():
            scores = self._task.validate(self.best_guess)
        self._network.train()
        if not math.isfinite(scores["loss"]):
            raise diverged(f"the validation loss is {scores['loss']} after epoch {progress.epoch + 1}")
        score = decisive(scores)
        improved = score < progress.best_loss
        if improved:
            progress.best_loss, progress.best_epoch = score, progress.epoch
        else:
            progress.plateaus += 1
        training_loss = progress.epoch_loss / max(progress.epoch_count, 1)
        progress.history.append({"epoch": progress.epoch, "training_loss": training_loss, **scores})
        progress.epoch += 1
        losses = [entry["loss"] for entry in progress.history]
        if self._average and progress.averaging_since is None and stopped_improving(losses, self._options.non_monotone):
            progress.averaging_since = progress.epoch
        progress.finished = self._finished()
        progress.position, progress.epoch_loss, progress.epoch_count = 0, 0.0, 0
        self._state = self._fresh_state()
        for watcher in self._watchers:
            watcher.validated(progress)
        return improved

    def _part(self, chunk: Chunk) -> Part:
        more: tuple[Any, ...] = ()
        if chunk.places is not None:
            more = (chunk.places.tolist(),)
        elif getattr(self._network, "taught", False):
            more = (self._local(chunk.targets),)
        return Part(self._local(chunk.inputs), self._local(chunk.starts, axis=0), more)

    def _local(self, array: Any, axis: int = 1) -> Tensor:
        """This process's lanes of an array."""
        start = self._fabric.global_rank * self._local_lanes
        tensor = torch.from_numpy(array).narrow(axis, start, self._local_lanes)
        return tensor.to(self._fabric.device, non_blocking=True)


def make_optimizer(network: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """The optimizer that the options name, over all of the network's parameters."""
    kinds: dict[str, type[torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "rmsprop": torch.optim.RMSprop,
    }
    arguments: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer in ("adam", "adamw"):
        arguments["fused"] = True
    return kinds[options.optimizer](network.parameters(), **arguments)
