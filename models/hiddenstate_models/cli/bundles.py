"""The commands `hiddenstate-models export` and `hiddenstate-models inspect`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from hiddenstate_models.bundle import Bundle


def export(
    source: Annotated[Path, typer.Argument(help="Folder of a training run, or a bundle to export again.")],
    out: Annotated[Path, typer.Option(help="Model folder; the bundle goes to OUT/NAME/VERSION.")] = Path("bundles"),
    name: Annotated[str | None, typer.Option(help="Model name; by default the task, or the bundle's.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="By default one more than the newest there.")] = None,
    dtype: Annotated[
        Literal["float16", "float32"] | None,
        typer.Option(help="How weights are stored; by default float16 for words, float32 for values."),
    ] = None,
    int8: Annotated[
        bool | None,
        typer.Option(
            "--int8/--no-int8",
            help="Add a step that screens words in int8 and measure what it costs; by default for next-word models.",
        ),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to measure the int8 step on, named as training data is; repeatable. By default the "
            "run's validation text, or text the model writes."
        ),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="A line for the card on the data and its licence; repeatable.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the card.")] = None,
) -> None:
    """Make a bundle that hiddenstate-server serves.

    Example: hiddenstate-models export runs/books --out bundles --name books
    """
    from hiddenstate_models.export.sources import ExportOptions, export_source

    options = ExportOptions(
        name=name, version=version, dtype=dtype, int8=int8, probe=probe or (), data=data or (), licence=licence
    )
    bundle = export_source(source, out, options)
    console = Console()
    console.print(summary(bundle))
    console.print(f"Serve it: hiddenstate-server --models {out}")


def inspect(
    folder: Annotated[Path, typer.Argument(help="A bundle: the folder NAME/VERSION.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print config.json and the tensors as JSON.")] = False,
) -> None:
    """Check a bundle and show what is in it.

    Example: hiddenstate-models inspect bundles/books/1
    """
    bundle = Bundle.load(folder)
    console = Console()
    if as_json:
        tensors = {
            name: {"dtype": tensor.dtype, "shape": tensor.shape, "bytes": tensor.bytes}
            for name, tensor in bundle.tensors.items()
        }
        console.print_json(data=bundle.config.model_dump(mode="json", exclude_none=True) | {"tensors": tensors})
        return
    for table in (summary(bundle), _files(bundle), _tensors(bundle)):
        console.print(table)


def summary(bundle: Bundle) -> Table:
    config, network = bundle.config, bundle.network
    table = Table(title=f"{config.name}, version {config.version}", show_header=False)
    facts = {
        "folder": str(bundle.folder),
        "task": config.task,
        "network": network.description,
        "parameters": f"{config.parameters:,}",
        "state": f"{config.state_size * 4:,} bytes a session",
    }
    if config.text is not None:
        lowercase = ", lower-cased" if config.text.lowercase else ""
        facts["text"] = f"{len(bundle.vocabulary):,} words{lowercase}"
    if config.labels is not None:
        ahead = f", {config.labels.look_ahead} word(s) later" if config.labels.look_ahead else ""
        facts["labels"] = ", ".join(config.labels.names) + ahead
    if config.values is not None:
        facts["columns"] = ", ".join(config.values.columns)
        facts["predicts"] = ", ".join(config.values.columns[target] for target in config.values.targets)
    for split, scores in config.scores.items():
        facts[f"scores, {split}"] = "\n".join(f"{row}: {_metrics(metrics)}" for row, metrics in scores.items())
    for label, fact in facts.items():
        table.add_row(label, fact)
    return table


def _metrics(metrics: object) -> str:
    if isinstance(metrics, dict):
        return ", ".join(f"{name} {_metrics(value)}" for name, value in metrics.items())
    return f"{metrics:.4g}" if isinstance(metrics, float) else str(metrics)


def _files(bundle: Bundle) -> Table:
    table = Table("file", "bytes", "SHA-256", title="Files, as they should be")
    table.columns[1].justify = "right"
    for name, facts in bundle.config.files.items():
        table.add_row(name, f"{facts.bytes:,}", facts.sha256[:16])
    return table


def _tensors(bundle: Bundle) -> Table:
    table = Table("tensor", "dtype", "shape", "bytes", title="Weights")
    table.columns[3].justify = "right"
    for name, tensor in bundle.tensors.items():
        table.add_row(name, tensor.dtype, " x ".join(map(str, tensor.shape)), f"{tensor.bytes:,}")
    return table
