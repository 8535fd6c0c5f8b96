"""A measurement and its verdict as files: one HTML page that needs nothing else, a PNG, and JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console
from rich.padding import Padding

from hiddenstate_models.gradients.norms import Norms
from hiddenstate_models.gradients.plots import as_svg, draw_all, draw_comparison, panels
from hiddenstate_models.gradients.survival import Survival
from hiddenstate_models.gradients.verdict import LEAST, MOST, Findings
from hiddenstate_models.gradients.words import number, share

HTML_FILE, PNG_FILE, JSON_FILE = "gradients.html", "gradients.png", "gradients.json"
COMPARISON_FILE = "gradients-compared.png"
_COLOURS = {"live": "green", "vanish": "yellow", "explode": "red"}
_PLACES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def write_page(findings: Findings, folder: Path) -> None:
    """Writes gradients.html, beside `write_picture`'s files."""
    write_picture(findings, folder)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hiddenstate_models.gradients", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    measurement = findings.measurement
    rows = [("all layers", measurement.whole)]
    if len(measurement.layers) > 1:
        rows += [(f"layer {i}", layer) for i, layer in enumerate(measurement.layers, 1)]
    page = environment.get_template("page.html.jinja").render(
        subject=findings.subject,
        verdict=findings.verdict,
        rows=rows,
        places=[place for place in _PLACES if place <= measurement.whole.steps],
        pictures=[(panel, as_svg(panel)) for panel in panels(findings)],
        pairs=measurement.whole.pairs[0],
        least=LEAST,
        most=MOST,
        number=number,
        share=share,
    )
    (folder / HTML_FILE).write_text(page, encoding="utf-8")


def write_picture(findings: Findings, folder: Path) -> None:
    """Writes gradients.png and gradients.json."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_all(findings, folder / PNG_FILE)
    (folder / JSON_FILE).write_text(json.dumps(as_json(findings), indent=2, allow_nan=False) + "\n")


def write_comparison(found: Sequence[Findings], folder: Path) -> Path:
    """Writes gradients-compared.png: what is left of several networks' gradients."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_comparison(found, folder / COMPARISON_FILE)
    return folder / COMPARISON_FILE


def show(findings: Findings, console: Console) -> None:
    """Prints verdict, evidence and remedies."""
    verdict = findings.verdict
    console.print(f"{findings.subject.name}: {findings.subject.description}", style="dim", highlight=False)
    console.print(verdict.headline, style=f"bold {_COLOURS[verdict.kind]}", highlight=False)
    for sentence in verdict.evidence:
        console.print(Padding(sentence, (0, 0, 0, 2)), highlight=False)
    for remedy in verdict.remedies:
        console.print(f"To try: [bold]{remedy.switch}[/bold]", highlight=False)
        console.print(Padding(remedy.why, (0, 0, 0, 2)), highlight=False)


def as_json(findings: Findings) -> dict[str, Any]:
    """Everything found, as JSON types; numbers that are not finite are null."""
    measurement = findings.measurement
    found = {
        "subject": asdict(findings.subject),
        "verdict": asdict(findings.verdict),
        "survival": {
            "whole": _survival(measurement.whole),
            "layers": [_survival(layer) for layer in measurement.layers],
        },
        "jacobians": [
            asdict(layer) | {"radius": layer.radius, "largest": layer.largest} for layer in measurement.spectra
        ],
        "gates": [asdict(gate) for gate in measurement.gates],
        "norms": _norms(measurement.norms),
    }
    plain: dict[str, Any] = _finite(found)
    return plain


def _survival(survival: Survival) -> dict[str, Any]:
    summary = {"factor": survival.factor, "half_life": survival.half_life, "one_percent": survival.reach()}
    return summary | asdict(survival)


def _norms(norms: Norms) -> dict[str, Any] | None:
    if not norms.updates:
        return None
    return {
        "updates": len(norms.updates),
        "median": norms.median,
        "largest": max(norms.before),
        "clipped": norms.clipped,
        "spikes": norms.spikes,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
