"""`hiddenstate-models search TASK`, made from the task's recipe."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hiddenstate_models.cli.options import explicit, with_options
from hiddenstate_models.cli.training import configuration_of
from hiddenstate_models.training.configuration import TRAINING
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Recipe, Told

_HELP = """Search for the settings with which `train {task}` does best (needs the extra `search`).

    Every trial is a run in OUT with values from the space, told all the other flags; the best one's settings are
    written to OUT/best.toml. Values are proposed by Optuna's tree-structured Parzen estimator (Bergstra et al., 2011),
    and trials that fall behind are ended early. Stopped, a search goes on by the same command.

    Example: hiddenstate-models search {task} --data DATA --epochs 5 --trials 30 --out runs/search
    """


def add_search_command(app: typer.Typer, recipe: Recipe[Any]) -> None:
    """Adds the task's command to `app`."""

    @app.command(recipe.task, help=_HELP.format(task=recipe.task))
    @with_options(**{recipe.group: recipe.settings, TRAINING: TrainingOptions})
    def command(
        *,
        context: typer.Context,
        data: Annotated[list[str], typer.Option(help=recipe.reads)] = [],  # noqa: B006
        valid: Annotated[list[str], typer.Option(help=recipe.holds_out)] = [],  # noqa: B006
        out: Annotated[Path, typer.Option(help="Folder of the search.")] = Path("runs") / f"search-{recipe.task}",
        space: Annotated[
            Path | None,
            typer.Option(
                help="TOML file with lists of values or { low, high, log, step } for options, in the tables "
                f"[{recipe.group}] and [{TRAINING}]; default: a space for this task, less what flags set.",
            ),
        ] = None,
        trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier calls included.")] = 20,
        pruner: Annotated[
            Literal["median", "hyperband", "none"],
            typer.Option(
                help="Which trials end early. median: those worse than half of the others after as many epochs, from "
                "the fifth trial on; hyperband: by brackets (Li et al., 2018); none."
            ),
        ] = "median",
        config: Annotated[Path | None, configuration_of(recipe)] = None,  # noqa: ARG001 - its callback has read it
        training: TrainingOptions,
        **settings: Any,
    ) -> None:
        from hiddenstate_models.search import commands

        told = Told(data, valid, settings[recipe.group], training)
        commands.search(recipe, told, out, space, explicit(context), trials=trials, pruning=pruner)
