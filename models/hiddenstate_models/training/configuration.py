"""A run's settings as a TOML file: read for `--config`, written into every run's folder."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Recipe, Settings, Told

CONFIGURATION_FILE = "config.toml"
TRAINING = "training"
"""The table of the options that all tasks share; a task's own are in one called as the recipe's group."""

_OUTSIDE = {"task": str, "data": list[str], "valid": list[str], "out": str}


def write_configuration(path: Path, recipe: Recipe[Settings], told: Told[Settings]) -> None:
    """Writes all of `told`, defaults too, so that the run repeats whatever later versions have as defaults."""
    groups: dict[str, Any] = {recipe.group: told.settings, TRAINING: told.training}
    content = {"task": recipe.task, "data": told.data, "valid": told.valid}
    path.write_text(
        tomli_w.dumps(content | {group: asdict(options) for group, options in groups.items()}), encoding="utf-8"
    )


def read_configuration(path: Path, recipe: Recipe[Any]) -> dict[str, Any]:
    """What a file sets, by the name of the flag that says the same; tables only sort them.

    Raises:
        ConfigurationError: no TOML, another task's, an unknown key or a value of the wrong type; says which.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from error
    groups = {recipe.group: _types(recipe.settings), TRAINING: _types(TrainingOptions)}
    outside = {name: value for name, value in content.items() if name not in groups}
    values = _checked(outside, _OUTSIDE, f"{path}", [*_OUTSIDE, *groups])
    if values.pop("task", recipe.task) != recipe.task:
        raise ConfigurationError(f"{path} is for `train {content['task']}`, not for `train {recipe.task}`")
    for group, types in groups.items():
        table = content.get(group, {})
        if not isinstance(table, dict):
            raise ConfigurationError(f"{path}: {group} must be a table, [{group}]")
        values |= _checked(table, types, f"{path}, [{group}]", types)
    return values


def closest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" where a known name is like this one, else the known names."""
    known = list(known)
    found = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {found[0]}?" if found else f"there are {', '.join(known)}"


def _types(options: type) -> dict[str, Any]:
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in fields(options)}


def _checked(table: Mapping[str, Any], types: Mapping[str, Any], where: str, known: Iterable[str]) -> dict[str, Any]:
    for name, value in table.items():
        if name not in types:
            raise ConfigurationError(f"{where}: unknown key {name!r}; {closest(name, known)}")
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ConfigurationError(f"{where}: {name} = {value!r}: {reason[0].lower()}{reason[1:]}") from error
    return dict(table)
