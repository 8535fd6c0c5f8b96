"""A search on disk: trials by number, what each was told and came to.

search.json       task, data, settings and space, which a search that goes on must have again
trials.journal    Optuna's journal of the study
trial-0/ ...      each trial's run folder, an ordinary one
best.toml         the best trial's configuration: `train TASK --config` trains with it
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.search.space import Dimension
from hiddenstate_models.training.configuration import CONFIGURATION_FILE
from hiddenstate_models.training.recipe import Told

Pruning = Literal["median", "hyperband", "none"]

SEARCH_FILE, JOURNAL_FILE, BEST_FILE = "search.json", "trials.journal", "best.toml"
_TRIAL = "trial-"
_REASON = "reason"
_UNPRUNED_TRIALS, _UNPRUNED_EPOCHS = 4, 1


@dataclass(frozen=True)
class Found:
    """A trial that has ended."""

    number: int
    state: Literal["finished", "pruned", "failed"]
    score: float | None
    """The best epoch's validation measure, the lower the better; of one that was pruned the last epoch's."""
    values: Mapping[str, Any]
    reason: str = ""
    """Why it failed."""


class Study:
    """The trials of one search, asked for one after the other and told what came of them.

    What is tried next is a function of the seed and of the trials before, so that a search which was stopped goes on as
    one that was not.
    """

    def __init__(self, folder: Path, dimensions: Sequence[Dimension], pruning: Pruning, told: Told[Any]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._folder = folder
        self._dimensions = dimensions
        self._seed = told.training.seed
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL_FILE)))
        self._study = optuna.create_study(
            study_name="search",
            storage=storage,
            pruner=_pruner(pruning, told.training.epochs),
            load_if_exists=True,
        )

    def next(self) -> tuple[Trial, dict[str, Any]]:
        """The trial that was cut off, or a new one, with its values."""
        cut_off = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._study.sampler = TPESampler(seed=self._seed + len(self._study.get_trials(deepcopy=False)) - len(cut_off))
        trial = Trial(self._study, cut_off[0]._trial_id) if cut_off else self._study.ask()
        return trial, {dimension.name: dimension.suggest(trial) for dimension in self._dimensions}

    def finish(self, trial: Trial, score: float) -> Found:
        """Records a trial's best score, and writes best.toml if none is better."""
        self._study.tell(trial, score)
        if self._study.best_trial.number == trial.number:
            shutil.copyfile(self.folder_of(trial.number) / CONFIGURATION_FILE, self.best_file)
        return self.found()[trial.number]

    def prune(self, trial: Trial) -> Found:
        """Records that a trial was ended early."""
        self._study.tell(trial, state=TrialState.PRUNED)
        return self.found()[trial.number]

    def fail(self, trial: Trial, reason: str) -> Found:
        """Records why a trial came to nothing."""
        trial.set_user_attr(_REASON, reason)
        self._study.tell(trial, state=TrialState.FAIL)
        return self.found()[trial.number]

    def found(self) -> list[Found]:
        """All trials that have ended, by number."""
        return [_found(trial) for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]

    @property
    def best_file(self) -> Path:
        """The best trial's configuration."""
        return self._folder / BEST_FILE

    def folder_of(self, number: int) -> Path:
        """A trial's run folder."""
        return self._folder / f"{_TRIAL}{number}"


@contextmanager
def opened(
    folder: Path, task: str, told: Told[Any], dimensions: Sequence[Dimension], pruning: Pruning
) -> Iterator[Study]:
    """A new search in `folder`, or the one there is, which nobody else may be at meanwhile.

    Raises:
        ConfigurationError: it is another one, or under way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"a search is under way in {folder}: choose another --out, or wait") from error
        _require_the_same(folder, _description(task, told, dimensions, pruning))
        yield Study(folder, dimensions, pruning, told)


def _description(task: str, told: Told[Any], dimensions: Sequence[Dimension], pruning: Pruning) -> dict[str, Any]:
    space = {
        one.name: one.values if isinstance(one.values, tuple) else one.values.model_dump(exclude_defaults=True)
        for one in dimensions
    }
    settings = {**asdict(cast(Any, told.settings)), **asdict(told.training)}
    fixed = {name: value for name, value in settings.items() if name not in space}
    described = {"task": task, "data": told.data, "valid": told.valid, "pruner": pruning, "space": space, **fixed}
    return cast(dict[str, Any], json.loads(json.dumps(described)))


def _require_the_same(folder: Path, now: Mapping[str, Any]) -> None:
    path = folder / SEARCH_FILE
    try:
        before = json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if before == now:
        return
    if before is None or not any(folder.glob(f"{_TRIAL}*")):
        # Nothing was trained, because what was told could not be.
        (folder / JOURNAL_FILE).unlink(missing_ok=True)
        path.write_text(json.dumps(now, indent=2) + "\n")
        return
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
            raise ConfigurationError(
                f"{folder} holds a search in which {name} was {before.get(name)}, not {now.get(name)}: give the same "
                "flags to go on with it, or choose another --out"
            )


def _found(trial: FrozenTrial) -> Found:
    if trial.state is TrialState.COMPLETE:
        return Found(trial.number, "finished", trial.value, trial.params)
    if trial.state is TrialState.PRUNED:
        last = trial.last_step
        score = None if last is None else trial.intermediate_values[last]
        return Found(trial.number, "pruned", score, trial.params)
    return Found(trial.number, "failed", None, trial.params, trial.user_attrs.get(_REASON, ""))


def _pruner(pruning: Pruning, epochs: int) -> BasePruner:
    match pruning:
        case "median":
            return MedianPruner(n_startup_trials=_UNPRUNED_TRIALS, n_warmup_steps=_UNPRUNED_EPOCHS + 1)
        case "hyperband":
            return HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
        case "none":
            return NopPruner()
