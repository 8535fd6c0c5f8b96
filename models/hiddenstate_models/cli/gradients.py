"""The command `hiddenstate-models gradients`."""

from pathlib import Path
from typing import Annotated

import typer


def gradients(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="A bundle, the folder of a training run (its best weights), or a TOML file of settings such as a "
            "run's config.toml, whose network is measured untrained. Several are compared too."
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="Data to measure on, as in training; repeatable. By default what the run or settings learn from."
        ),
    ] = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for gradients.html, .png and .json; by default the run's, else one in runs/. "
            "Several sources get a folder each in it."
        ),
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps back that the gradient is to reach; by default as far as training looks, its --k2."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps back to measure; at least to the horizon.")] = 300,
    lanes: Annotated[int, typer.Option(min=1, help="Documents or series side by side.")] = 8,
    windows: Annotated[
        int, typer.Option(min=1, help="Stretches of the data; more take longer and give narrower numbers.")
    ] = 2,
    to_json: Annotated[bool, typer.Option("--json", help="Print everything found as JSON.")] = False,
) -> None:
    """Say whether a model's gradients vanish, explode or live, and what to try.

    Follows the loss of many steps back through the states before them,
    decomposes the Jacobians of single steps, counts saturated gates, and reads
    gradient norms from a run's records. Writes a page with pictures.

    Examples:

    hiddenstate-models gradients runs/books

    hiddenstate-models gradients runs/books/config.toml   (the same network, untrained)

    hiddenstate-models gradients models/books/1 --data tests/book.txt --horizon 100

    hiddenstate-models gradients tanh.toml lstm.toml --out runs/compared
    """
    from hiddenstate_models.evaluation.gradients import report
    from hiddenstate_models.gradients.measurement import Effort

    effort = Effort(steps=steps, lanes=lanes, windows=windows)
    report(sources, data, out, effort, horizon, to_json=to_json)
