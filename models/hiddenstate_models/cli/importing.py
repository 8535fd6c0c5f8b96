"""The command `hiddenstate-models import`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from hiddenstate_models.cli.bundles import summary
from hiddenstate_models.errors import ConfigurationError

_ROLES = ("cells", "embedding", "output")


def import_(
    file: Annotated[
        Path, typer.Argument(help="Weights: a state dict (.safetensors, or .pt of tensors alone), or a model as .onnx.")
    ],
    task: Annotated[Literal["next-word", "next-value"], typer.Option(help="What the model predicts.")],
    name: Annotated[str, typer.Option(help="Model name.")],
    out: Annotated[Path, typer.Option(help="Model folder; the bundle goes to OUT/NAME/VERSION.")] = Path("bundles"),
    version: Annotated[int | None, typer.Option(min=1, help="By default one more than the newest there.")] = None,
    roles: Annotated[
        list[str] | None,
        typer.Option("--map", help="cells=NAME, embedding=NAME or output=NAME, where names and shapes leave it open."),
    ] = None,
    activation: Annotated[Literal["tanh", "relu"], typer.Option(help="Of a torch.nn.RNN.")] = "tanh",
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the card.")] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Words, one a line in the order of their ids, or tokenizer.json.", rich_help_panel="Words"),
    ] = None,
    lowercase: Annotated[bool, typer.Option(help="The model knows lower case alone.", rich_help_panel="Words")] = False,
    unknown: Annotated[
        str, typer.Option(help="The word that stands for all others.", rich_help_panel="Words")
    ] = "<unk>",
    end: Annotated[
        str, typer.Option(help="The word between sentences or documents.", rich_help_panel="Words")
    ] = "<eos>",
    columns: Annotated[str, typer.Option(help="Names of its inputs, with commas.", rich_help_panel="Values")] = "",
    targets: Annotated[str, typer.Option(help="Which of them it predicts; empty: all.", rich_help_panel="Values")] = "",
    mean: Annotated[
        str, typer.Option(help="What its inputs were centred by, a number a column.", rich_help_panel="Values")
    ] = "",
    std: Annotated[
        str, typer.Option(help="What they were divided by, a number a column.", rich_help_panel="Values")
    ] = "",
    error: Annotated[
        str, typer.Option(help="Typical error of each target, in its own unit.", rich_help_panel="Values")
    ] = "",
    data: Annotated[
        list[str] | None,
        typer.Option(help="Series it was not trained on, to measure its error; repeatable.", rich_help_panel="Values"),
    ] = None,
) -> None:
    """Make a bundle of a torch.nn.LSTM, GRU or RNN, or of an ONNX model around one.

    The bundle is written once its outputs agree with the model's, run by torch or onnxruntime.

    Example: hiddenstate-models import model.pt --task next-word --vocabulary words.txt --out models --name mine
    """
    from hiddenstate_models.importing import ImportOptions, import_model

    options = ImportOptions(
        name=name,
        version=version,
        roles=_mapping(roles or []),
        activation=activation,
        licence=licence,
        vocabulary=vocabulary,
        lowercase=lowercase,
        unknown=unknown,
        end=end,
        columns=_list(columns),
        targets=_list(targets),
        means=_numbers("mean", mean),
        stds=_numbers("std", std),
        errors=_numbers("error", error),
        data=data or (),
    )
    bundle = import_model(file, out, task, options)
    console = Console()
    console.print(summary(bundle))
    console.print(f"{bundle.config.training['data'][0]}.", highlight=False)
    console.print(f"Serve it: hiddenstate-server --models {out}")


def _mapping(roles: list[str]) -> dict[str, str]:
    mapping = dict(role.partition("=")[::2] for role in roles)
    if wrong := [role for role, name in mapping.items() if role not in _ROLES or not name]:
        raise ConfigurationError(f"--map {wrong[0]}: it is one of {', '.join(f'{role}=NAME' for role in _ROLES)}")
    return mapping


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, _list(text)))
    except ValueError as error:
        raise ConfigurationError(f"--{flag} is numbers with commas between them, not {text!r}") from error
