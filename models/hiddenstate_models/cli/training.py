"""`hiddenstate-models train TASK`, made from the task's recipe."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hiddenstate_models.cli.options import with_options
from hiddenstate_models.training.configuration import TRAINING, read_configuration
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Recipe, Told


def add_train_command(app: typer.Typer, recipe: Recipe[Any]) -> None:
    """Adds the task's command to `app`."""

    def configure(context: typer.Context, path: Path | None) -> Path | None:
        """The file's settings take the place of the flags' defaults."""
        if path is not None:
            context.default_map = read_configuration(path, recipe)
        return path

    @app.command(recipe.task, help=recipe.help)
    @with_options(**{recipe.group: recipe.settings, TRAINING: TrainingOptions})
    def command(
        *,
        data: Annotated[list[str], typer.Option(help=recipe.reads)] = [],  # noqa: B006
        valid: Annotated[list[str], typer.Option(help=recipe.holds_out)] = [],  # noqa: B006
        out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs") / recipe.task,
        config: Annotated[  # noqa: ARG001 - its callback has read it
            Path | None,
            typer.Option(
                help="TOML file with settings, such as a run's config.toml; flags override it.",
                is_eager=True,
                callback=configure,
            ),
        ] = None,
        resume: Annotated[
            bool,
            typer.Option("--resume", help="Go on with the run in --out, told what it was told when it started."),
        ] = False,
        training: TrainingOptions,
        **settings: Any,
    ) -> None:
        from hiddenstate_models.training import commands

        if resume:
            commands.resume(recipe, out)
        else:
            commands.train(recipe, Told(data, valid, settings[recipe.group], training), out)
