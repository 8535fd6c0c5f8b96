"""What `hiddenstate-models gradients` does: load or build a network, measure, judge, show, and write."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from hiddenstate_models.bundle import CONFIG_FILE, Bundle
from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.export.sources import RUN_FILE
from hiddenstate_models.gradients.measurement import Effort, measure
from hiddenstate_models.gradients.norms import Norms
from hiddenstate_models.gradients.report import HTML_FILE, as_json, show, write_comparison, write_page
from hiddenstate_models.gradients.verdict import Findings, judge
from hiddenstate_models.reference import reference_step
from hiddenstate_models.training.configuration import read_configuration
from hiddenstate_models.training.gradients import subject, written
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Prepared, Recipe, Told
from hiddenstate_models.training.recipes import RECIPES
from hiddenstate_models.training.run import RunRecord, as_saved, load_weights

_CHUNK = 32
"""Steps that data is read in: few, so that short documents waste little by padding."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A network, and how to read data for it."""

    name: str
    recipe: Recipe[Any]
    told: Told[Any]
    out: Path
    """Where its report goes by default."""
    files: Path | None = None
    """Folder with the vocabulary, where there is one."""
    network: Mapping[str, Any] | None = None
    """Its configuration, where it is not the recipe's."""
    trained: Callable[[nn.Module], nn.Module] | None = None
    """The trained network, given the recipe's fresh one."""
    norms: Norms | None = None


def report(
    sources: Sequence[Path],
    data: Sequence[str],
    out: Path | None,
    effort: Effort,
    horizon: int | None,
    *,
    to_json: bool,
) -> list[Findings]:
    """Measures how far back gradients reach in bundles, in runs' best weights or in configurations' fresh networks.

    Raises:
        DataError: a source is none of these, or the data cannot be used.
        ConfigurationError: a configuration cannot be used.
    """
    console = Console(stderr=to_json)
    found = []
    for source in map(_open, sources):
        findings = _judged(source, data, effort, horizon, console)
        folder = source.out
        if out is not None:
            folder = out / folder.name if len(sources) > 1 else out
        write_page(findings, folder)
        found.append(findings)
        if not to_json:
            show(findings, console)
            console.print(f"The page with everything: {folder / HTML_FILE}\n", soft_wrap=True)
    if len(found) > 1:
        picture = write_comparison(found, out or Path("runs"))
        console.print(f"All of them in one picture: {picture}", soft_wrap=True)
    if to_json:
        data_found = [as_json(findings) for findings in found]
        Console().print_json(data=data_found if len(found) > 1 else data_found[0])
    return found


def _judged(source: _Source, data: Sequence[str], effort: Effort, horizon: int | None, console: Console) -> Findings:
    with console.status(f"{source.name}: reading the data") as status:
        told = replace(source.told, data=list(data), valid=[]) if data else source.told
        if not told.data:
            raise DataError("nothing to measure on: name files with --data")
        torch.manual_seed(told.training.seed)
        prepared = _prepare(source.recipe, told, source.files, effort.lanes)
        configuration = source.network or prepared.config
        effort = replace(effort, steps=max(effort.steps, horizon or told.training.k2 + written(configuration)))
        network = source.trained(prepared.network) if source.trained else prepared.network
        measured = measure(
            network,
            prepared.task,
            effort,
            epoch=told.training.epochs,
            norms=source.norms,
            progress=lambda what: status.update(f"{source.name}: {what}"),
        )
    return judge(subject(source.name, configuration, told, horizon, trained=bool(source.trained)), measured)


def _prepare(recipe: Recipe[Any], told: Told[Any], files: Path | None, lanes: int) -> Prepared:
    training = replace(told.training, lanes=lanes, k1=_CHUNK, k2=_CHUNK, precision="32-true")
    told = replace(told, training=training)
    try:
        return recipe.prepare(told, files)
    except DataError:
        if told.valid:
            raise
        # Too little to hold a part out for validation, which nothing is done with here.
        return recipe.prepare(replace(told, valid=told.data), files)


def _open(source: Path) -> _Source:
    if source.is_file():
        return _open_configuration(source)
    if (source / RUN_FILE).exists():
        return _open_run(source)
    if (source / CONFIG_FILE).exists():
        return _open_bundle(source)
    raise DataError(
        f"{source} is neither a training run ({RUN_FILE}) nor a bundle ({CONFIG_FILE}) nor a TOML file of settings"
    )


def _open_configuration(path: Path) -> _Source:
    try:
        task = tomllib.loads(path.read_text(encoding="utf-8")).get("task")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from error
    recipe = _recipe(task, path)
    values = read_configuration(path, recipe)
    options = {kind: _built(kind, values) for kind in (recipe.settings, TrainingOptions)}
    told = Told(values.get("data", []), values.get("valid", []), options[recipe.settings], options[TrainingOptions])
    name = f"{path.parent.name}-untrained" if (path.parent / RUN_FILE).exists() else path.stem
    return _Source(name=name, recipe=recipe, told=told, out=Path("runs") / f"gradients-{name}")


def _open_run(folder: Path) -> _Source:
    record = RunRecord.load(folder)
    recipe = _recipe(record.task, folder)
    settings = as_saved(recipe.settings, record.data["options"], folder)
    training = as_saved(TrainingOptions, record.training, folder)
    told = Told(record.data["training"], record.data["validation"], settings, training)
    weights = load_weights(folder)

    def trained(network: nn.Module) -> nn.Module:
        network.load_state_dict(weights)
        return network

    return _Source(
        name=folder.name, recipe=recipe, told=told, out=folder, files=folder, trained=trained, norms=Norms.load(folder)
    )


def _open_bundle(folder: Path) -> _Source:
    bundle = Bundle.load(folder)
    config = bundle.config
    recipe = _recipe(config.task, folder)
    known = {field.name for field in fields(TrainingOptions)}
    training = {name: value for name, value in config.training.get("options", {}).items() if name in known}
    told = Told([], [], recipe.settings(**_layout(bundle)), TrainingOptions(**training))
    network = reference_step(bundle).network
    return _Source(
        name=f"{config.name}, version {config.version}",
        recipe=recipe,
        told=told,
        out=Path("runs") / f"gradients-{config.name}-{config.version}",
        files=folder,
        network=config.network,
        trained=lambda _: network,
    )


def _layout(bundle: Bundle) -> dict[str, Any]:
    """Settings that say how to read tables of several columns, and how far ahead."""
    values, network = bundle.config.values, bundle.config.network
    ahead = {"horizon": network["horizon"]} if "horizon" in network else {}
    if values is None or len(values.columns) == 1:
        return ahead
    targets = [values.columns[target] for target in values.targets]
    return {"layout": "joint", "columns": ",".join(values.columns), "targets": ",".join(targets), **ahead}


def _recipe(task: Any, source: Path) -> Recipe[Any]:
    if task not in RECIPES:
        known = ", ".join(RECIPES)
        raise ConfigurationError(f"{source} is for the task {task!r}, which cannot be trained; there are {known}")
    return RECIPES[task]


def _built(kind: type, values: Mapping[str, Any]) -> Any:
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})
