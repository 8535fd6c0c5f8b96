"""What a search tries: for each option a list of values or a range, read from TOML.

[training]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
optimizer = ["adam", "adamw"]

[words]
hidden = ["128", "256,256"]
embedding = { low = 64, high = 256, step = 64 }
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.training.configuration import TRAINING, closest
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Recipe, Settings, Told

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

_DEFAULTS = Path(__file__).parent / "spaces"


class Range(BaseModel):
    """Numbers from low to high, both included."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    low: float
    high: float
    log: bool = False
    """Whether all orders of magnitude are tried equally often."""
    step: float | None = None


@dataclass(frozen=True)
class Dimension:
    """An option, and what it may be."""

    group: str
    """The task's own, or TRAINING."""
    name: str
    integer: bool
    values: Range | tuple[Any, ...]

    def suggest(self, trial: "BaseTrial") -> Any:
        """The value that a trial is to have."""
        if isinstance(self.values, tuple):
            return trial.suggest_categorical(self.name, self.values)
        low, high, step = self.values.low, self.values.high, self.values.step
        if self.integer:
            return trial.suggest_int(self.name, int(low), int(high), step=int(step or 1), log=self.values.log)
        return trial.suggest_float(self.name, low, high, step=step, log=self.values.log)

    @property
    def extremes(self) -> Sequence[Any]:
        """Values between which, or among which, all others lie."""
        if isinstance(self.values, tuple):
            return self.values
        ends = (self.values.low, self.values.high)
        return [int(end) if self.integer else end for end in ends]

    def __str__(self) -> str:
        if isinstance(self.values, tuple):
            return ", ".join(map(str, self.values))
        steps = f" in steps of {self.values.step:g}" if self.values.step else ""
        return f"{self.values.low:g} to {self.values.high:g}{', by magnitude' if self.values.log else steps}"


def read_space(path: Path | None, recipe: Recipe[Settings], fixed: Iterable[str]) -> list[Dimension]:
    """The dimensions in a file, or those that this task is searched in by default, without the options `fixed` by hand.

    Raises:
        ConfigurationError: no TOML, an unknown option, values that it cannot have, or one that is fixed in a file.
    """
    source = path or _DEFAULTS / f"{recipe.task}.toml"
    try:
        content = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"cannot read {source}: {error}") from error
    groups: dict[str, type] = {recipe.group: recipe.settings, TRAINING: TrainingOptions}
    dimensions: list[Dimension] = []
    for group, table in content.items():
        if group not in groups or not isinstance(table, dict):
            raise ConfigurationError(
                f"{source}: options stand in a table, [{recipe.group}] or [{TRAINING}], not {group!r}"
            )
        for name, values in table.items():
            dimensions.append(_dimension(group, name, values, groups[group], f"{source}, [{group}]"))
    taken = [dimension.name for dimension in dimensions if dimension.name in set(fixed)]
    if taken and path is not None:
        raise ConfigurationError(f"{taken[0]} is given by its flag and searched for by {path}: leave one out")
    dimensions = [dimension for dimension in dimensions if dimension.name not in taken]
    if not dimensions:
        raise ConfigurationError(f"{source} leaves nothing to search for")
    return dimensions


def as_told(
    told: Told[Settings], group: str, dimensions: Sequence[Dimension], values: Mapping[str, Any]
) -> Told[Settings]:
    """What a trial is told: the same, but for the options that it has from the search.

    Raises:
        ConfigurationError: these settings do not go together.
    """
    own = {one.name: values[one.name] for one in dimensions if one.group == group}
    shared = {one.name: values[one.name] for one in dimensions if one.group == TRAINING}
    settings: Any = told.settings
    return Told(told.data, told.valid, replace(settings, **own), replace(told.training, **shared))


def _dimension(group: str, name: str, values: Any, options: type, where: str) -> Dimension:
    types = {field.name: get_type_hints(options)[field.name] for field in fields(options)}
    if name not in types:
        raise ConfigurationError(f"{where}: unknown option {name!r}; {closest(name, types)}")
    kind = types[name]
    if isinstance(values, dict):
        if kind not in (int, float):
            raise ConfigurationError(f"{where}: {name} is no number: list its values, {name} = [...]")
        found: Range | tuple[Any, ...] = _range(name, values, kind, where)
    elif isinstance(values, list) and values:
        for value in values:
            try:
                TypeAdapter(kind).validate_python(value, strict=True)
            except ValidationError as error:
                raise ConfigurationError(f"{where}: {name} cannot be {value!r}: {error.errors()[0]['msg']}") from error
        found = tuple(values)
    else:
        raise ConfigurationError(f"{where}: {name} is a list of values or {{ low = ..., high = ... }}, not {values!r}")
    dimension = Dimension(group, name, kind is int, found)
    for value in dimension.extremes:
        options(**{name: value})
    return dimension


def _range(name: str, values: Mapping[str, Any], kind: type, where: str) -> Range:
    try:
        found = Range.model_validate(values)
    except ValidationError as error:
        detail = error.errors()[0]
        what = ".".join(map(str, (name, *detail["loc"])))
        raise ConfigurationError(f"{where}: {what}: {detail['msg']}") from error
    numbers = [number for number in (found.low, found.high, found.step) if number is not None]
    if kind is int and any(number != int(number) for number in numbers):
        raise ConfigurationError(f"{where}: {name} is a whole number, and so must low, high and step be")
    if not found.low < found.high or (found.step is not None and found.step <= 0):
        raise ConfigurationError(f"{where}: {name} needs low < high, and a step above 0")
    if found.log and (found.low <= 0 or found.step is not None):
        raise ConfigurationError(f"{where}: {name} on a logarithmic scale needs low > 0, and has no step")
    return found
