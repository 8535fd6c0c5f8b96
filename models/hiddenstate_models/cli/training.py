"""`hiddenstate-models train TASK`, made from the task's recipe."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hiddenstate_models.cli.options import explicit, with_options
from hiddenstate_models.training.configuration import TRAINING, read_configuration
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Recipe, Told


def configuration_of(recipe: Recipe[Any]) -> Any:
    """The flag --config, by which a file's settings take the place of the other flags' defaults."""

    def configure(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            context.default_map = read_configuration(path, recipe)
        return path

    return typer.Option(
        help="TOML file with settings, such as a run's config.toml; flags override it.",
        is_eager=True,
        callback=configure,
    )


def add_train_command(app: typer.Typer, recipe: Recipe[Any]) -> None:
    """Adds the task's command to `app`."""

    @app.command(recipe.task, help=recipe.help)
    @with_options(**{recipe.group: recipe.settings, TRAINING: TrainingOptions})
    def command(
        *,
        context: typer.Context,
        data: Annotated[list[str], typer.Option(help=recipe.reads)] = [],  # noqa: B006
        valid: Annotated[list[str], typer.Option(help=recipe.holds_out)] = [],  # noqa: B006
        out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs") / recipe.task,
        config: Annotated[Path | None, configuration_of(recipe)] = None,  # noqa: ARG001 - its callback has read it
        resume: Annotated[
            bool,
            typer.Option(
                "--resume",
                help="Go on with the run in --out, told what it was told when it started; how fast and how long it "
                "learns can be told anew.",
            ),
        ] = False,
        dry_run: Annotated[
            bool,
            typer.Option("--dry-run", help="Measure a few updates, say what memory and time the run would take, stop."),
        ] = False,
        training: TrainingOptions,
        **settings: Any,
    ) -> None:
        from hiddenstate_models.training import commands

        if resume:
            given = explicit(context)
            values = {**asdict(training), **asdict(settings[recipe.group]), "data": data, "valid": valid}
            commands.resume(recipe, out, changes={name: values[name] for name in given if name in values})
        elif dry_run:
            commands.dry_run(recipe, Told(data, valid, settings[recipe.group], training))
        else:
            commands.train(recipe, Told(data, valid, settings[recipe.group], training), out)
