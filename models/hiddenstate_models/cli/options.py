"""Command-line flags made from dataclasses, so that an option is written down once."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer


def explicit(context: typer.Context) -> list[str]:
    """Names of the parameters that were given on the command line, not by default or by a file."""
    return [
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    ]


def with_options(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a typer command the fields of dataclasses as flags; it receives the built instances by the group's name."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters
        hints = get_type_hints(command, include_extras=True)
        parameters = [
            p.replace(annotation=hints[name])
            for name, p in own.items()
            if name not in groups and p.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        owners: dict[str, str] = {}
        for group, kind in groups.items():
            kinds = get_type_hints(kind)
            for field in fields(kind):
                if "help" not in field.metadata:
                    continue
                owners[field.name] = group
                flag = typer.Option(help=field.metadata["help"], rich_help_panel=group.capitalize())
                parameters.append(
                    inspect.Parameter(
                        field.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=field.default,
                        annotation=Annotated[kinds[field.name], flag],
                    )
                )

        @wraps(command)
        def run(**arguments: Any) -> None:
            collected: dict[str, dict[str, Any]] = {group: {} for group in groups}
            rest: dict[str, Any] = {}
            for name, value in arguments.items():
                (collected[owners[name]] if name in owners else rest)[name] = value
            command(**rest, **{group: kind(**collected[group]) for group, kind in groups.items()})

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        )
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate
