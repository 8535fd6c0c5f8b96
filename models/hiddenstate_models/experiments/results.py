"""Results as files: one for each arm and seed, so that an experiment goes on wherever it was stopped."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.experiments.experiment import Arm, Group, Outcome, Result


class Results:
    """The results of one experiment: FOLDER/results/ARM-SEED.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = folder / "results"

    def path(self, arm: str, seed: int) -> Path:
        """Where the result of an arm and seed is, or will be."""
        return self._files / f"{arm}-{seed}.json"

    def save(self, result: Result) -> None:
        """Writes a result, all or nothing."""
        self._files.mkdir(parents=True, exist_ok=True)
        path = self.path(result.arm, result.seed)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(result)) + "\n")
        fresh.replace(path)

    def load(self, arm: Arm, seed: int) -> Result | None:
        """The result of an arm and seed, if there is one.

        Raises:
            ConfigurationError: it was made with other settings than the arm's.
            DataError: the file cannot be read.
        """
        path = self.path(arm.name, seed)
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            result = Result(**{**fields, "outcome": _outcome(fields["outcome"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} holds no result: {error}. Remove it to have it made again.") from error
        changed = _difference(result.settings, arm.settings)
        if changed:
            raise ConfigurationError(
                f"{path} was made with other settings ({changed}): choose another --out, or remove it to have it made "
                "again"
            )
        return result

    def group(self, arm: Arm, seeds: int) -> Group:
        """An arm with the results it has for the first so many seeds."""
        found = [self.load(arm, seed) for seed in range(seeds)]
        return Group(arm, [result for result in found if result is not None])


def _outcome(fields: Mapping[str, Any]) -> Outcome:
    curves = {name: [(x, y) for x, y in curve] for name, curve in fields["curves"].items()}
    return Outcome(**{**fields, "curves": curves})


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    plain: dict[str, Any] = json.loads(json.dumps(new))
    for name in sorted(old.keys() | plain.keys()):
        if old.get(name) != plain.get(name):
            return f"{name} was {old.get(name)!r} and is {plain.get(name)!r}"
    return ""
