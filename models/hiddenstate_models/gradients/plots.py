"""Pictures of a measurement; each panel's title says what it shows."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import PercentFormatter

from hiddenstate_models.gradients.gates import OPEN, SHUT
from hiddenstate_models.gradients.survival import Survival
from hiddenstate_models.gradients.verdict import LEAST, Findings
from hiddenstate_models.gradients.words import number, share, steps

_INK, _FAINT, _MAIN, _WARM = "#24292f", "#8c959f", "#1f6feb", "#d1570c"
_LAYERS = ("#1a7f37", "#bf8700", "#8250df", "#cf222e", "#0a7ea4")
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.hashsalt": "hiddenstate",
}
_FLOOR = 1e-12
"""What is less is drawn no more: float32 would have rounded it away long before."""
_SMALLEST_SINGULAR = 1e-3
_CEILING = 1e30
_RARELY = 0.01
_PLACES = 300
"""Along training, at which norms are drawn."""


class Panel(NamedTuple):
    """A picture of one of the things measured."""

    title: str
    explanation: str
    draw: Callable[[FigureBase, str], None]
    """Draws on a figure, under a title."""


def panels(findings: Findings) -> list[Panel]:
    """Of everything that was measured, the survival of the gradient first."""
    measurement = findings.measurement
    found = [_survival(findings)]
    if measurement.spectra:
        found.append(_spectra(findings))
    if measurement.gates:
        found.append(_gates(findings))
    if measurement.norms.updates:
        found.append(_norms(findings))
    return found


def draw_all(findings: Findings, path: Path) -> None:
    """All panels on one picture, as PNG."""
    first, *others = panels(findings)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(13.5, 8.6 if others else 5), layout="constrained")
        figure.suptitle(findings.verdict.headline, x=0.01, ha="left", fontsize=15, fontweight="bold")
        rows = [0.06, 1, 0.9] if others else [0.06, 1]
        head, top, *bottom = figure.subfigures(len(rows), 1, height_ratios=rows, squeeze=False).flat
        head.text(0.01, 0.5, f"{findings.subject.name}: {findings.subject.description}", color=_FAINT, va="center")
        first.draw(top, first.title)
        for row in bottom:
            for panel, place in zip(
                others, row.subfigures(1, len(others), wspace=0.03, squeeze=False).flat, strict=True
            ):
                panel.draw(place, panel.title)
        figure.savefig(path, dpi=120, facecolor="white")


def draw_comparison(found: Sequence[Findings], path: Path) -> None:
    """What is left of several networks' gradients, each line called by the network's name, as PNG."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 5.4), layout="constrained")
        axes = figure.subplots()
        end = max(_end(one.measurement.whole, one.subject.horizon) for one in found)
        highest, lowest = 1.0, LEAST
        for one, color in zip(found, _cycle(len(found)), strict=True):
            whole = one.measurement.whole
            back = np.arange(min(end, whole.steps) + 1)
            low, middle, high = (
                np.maximum(values[: len(back)], _FLOOR / 10) for values in (whole.low, whole.median, whole.high)
            )
            axes.fill_between(back, low, high, color=color, alpha=0.12, linewidth=0)
            axes.plot(back, middle, color=color, linewidth=2)
            last = int(np.argmax(middle < _FLOOR)) or len(back) - 1
            _label(
                axes, one.subject.name, (back[last], max(middle[last], _FLOOR)), (6, -3 if last == end else 5), color
            )
            highest, lowest = max(highest, min(high.max(), _CEILING)), min(lowest, low.min())
        axes.set_yscale("log")
        axes.set_xlim(0, end)
        axes.set_ylim(max(_FLOOR, lowest / 3), 3 * highest)
        axes.axhline(LEAST, color=_FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xlabel("k, steps back")
        axes.set_ylabel("share of the gradient left (median and middle 80 %)")
        longest, shortest = (pick(found, key=lambda one: one.measurement.whole.factor) for pick in (max, min))
        most, least = (number(one.measurement.whole.half_life) for one in (longest, shortest))
        if longest.measurement.whole.factor < 1:
            known = f"it halves every {most} steps in {longest.subject.name}, every {least} in {shortest.subject.name}"
        else:
            known = f"it does not shrink in {longest.subject.name}"
        _head(figure, f"What is left of the gradient: {known}")
        figure.savefig(path, dpi=120, facecolor="white")


def as_svg(panel: Panel) -> str:
    """A panel without its title as an <svg> element."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.5), layout="constrained")
        panel.draw(figure, "")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _survival(findings: Findings) -> Panel:
    whole, layers, horizon = findings.measurement.whole, findings.measurement.layers, findings.subject.horizon

    def draw(figure: FigureBase, title: str) -> None:
        axes = figure.subplots()
        end = _end(whole, horizon)
        back = np.arange(end + 1)
        low, middle, high = (
            np.maximum(values[: end + 1], _FLOOR / 10) for values in (whole.low, whole.median, whole.high)
        )
        axes.fill_between(back, low, high, color=_MAIN, alpha=0.13, linewidth=0)
        axes.plot(back, middle, color=_MAIN, linewidth=2.2)
        axes.set_yscale("log")
        axes.set_xlim(0, end)
        axes.set_ylim(max(_FLOOR, 0.5 * min(low.min(), LEAST)), 2 * min(max(high.max(), 1), _CEILING))
        if len(layers) > 1:
            for i, (layer, color) in enumerate(zip(layers, _cycle(len(layers)), strict=True), 1):
                axes.plot(back, np.maximum(layer.median[: end + 1], _FLOOR / 10), color=color, linewidth=1.1)
                place = round(i / (len(layers) + 1) * end)
                _label(axes, f"layer {i}", (place, max(layer.median[place], _FLOOR)), (0, 5), color)
        axes.axhline(LEAST, color=_FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
        _label(axes, "1 %", (end, LEAST), (3, -3), _FAINT)
        if horizon <= end:
            axes.axvline(horizon, color=_WARM, linewidth=1)
            side: Literal["left", "right"] = "left" if horizon < 0.7 * end else "right"
            top = (horizon, axes.get_ylim()[1])
            _label(axes, f" {steps(horizon)}: as far as it should reach ", top, (0, -8), _WARM, side)
        axes.set_xlabel("k, steps back")
        axes.set_ylabel("share of the gradient left")
        _head(figure, title)

    if whole.factor < 1:
        title = f"In the long run it halves every {number(whole.half_life)} steps"
    else:
        title = f"A step back multiplies it by {number(whole.factor)}"
    return Panel(
        title,
        "The norm of the gradient of a step's loss by the state k steps before it, as a share of that by its own "
        f"state. Thick line: the median of {whole.pairs[0]:,} (step, sequence) pairs, over the state of all layers "
        "together; shaded: the middle 80 % of them"
        + ("; thin lines: each layer's state." if len(layers) > 1 else ".")
        + " An LSTM's state is h and c, each other cell's is h.",
        draw,
    )


def _spectra(findings: Findings) -> Panel:
    layers = findings.measurement.spectra

    def draw(figure: FigureBase, title: str) -> None:
        every = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
        for i, (axes, layer) in enumerate(zip(every, layers, strict=True), 1):
            _, low, middle, high, largest = np.maximum(np.array(layer.singular_values).T, _SMALLEST_SINGULAR / 10)
            axes.vlines(layer.steps, low, high, color=_MAIN, alpha=0.2, linewidth=7)
            axes.plot(layer.steps, largest, "^-", color=_INK, markersize=4, linewidth=0.7, label="largest")
            axes.plot(
                layer.steps, middle, "s-", color=_MAIN, markersize=4, linewidth=0.7, label="median singular value"
            )
            axes.plot(layer.steps, layer.radii, "o-", color=_WARM, markersize=4, linewidth=0.7, label="spectral radius")
            axes.axhline(1, color=_FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set_yscale("log")
            axes.set_xlabel("step of the sequence" + (f", layer {i}" if len(layers) > 1 else ""))
        bottom, top = every[0].get_ylim()
        every[0].set_ylim(min(max(bottom, _SMALLEST_SINGULAR), 0.08), max(top, 12))
        _head(figure, title)
        lines, names = every[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)

    radii = ", ".join(number(layer.radius) for layer in layers)
    return Panel(
        f"One step's Jacobian: spectral radius {radii}",
        "Along one sequence, the Jacobian of each layer's state by its state one step before. Shaded: the middle 80 % "
        "of its singular values. A gradient shrinks for good where all of them are below 1, and can only grow where "
        "the largest is above 1; the spectral radius is what counts if steps are alike.",
        draw,
    )


def _gates(findings: Findings) -> Panel:
    gates = findings.measurement.gates
    many = len({gate.layer for gate in gates}) > 1

    def draw(figure: FigureBase, title: str) -> None:
        axes = figure.subplots()
        names = [f"{gate.name}, layer {gate.layer}" if many else gate.name for gate in gates]
        shut, wide = (100 * np.array([getattr(gate, side) for gate in gates]) for side in ("shut", "open"))
        axes.barh(names, shut, color=_WARM, height=0.62)
        axes.barh(names, 100 - shut - wide, left=shut, color="#e7ebef", height=0.62)
        axes.barh(names, wide, left=100 - wide, color=_MAIN, height=0.62)
        for row, (left, right) in enumerate(zip(shut, wide, strict=True)):
            axes.text(1, row, f"{left:.0f} %", va="center", color="white" if left > 12 else _INK, fontsize=8.5)
            axes.text(
                99, row, f"{right:.0f} %", va="center", ha="right", color="white" if right > 12 else _INK, fontsize=8.5
            )
        axes.text(0, -0.75, f"shut (< {SHUT})", color=_WARM, fontsize=8.5)
        axes.text(100, -0.75, f"wide open (> {OPEN})", color=_MAIN, ha="right", fontsize=8.5)
        axes.set_ylim(len(gates) - 0.4, -1)
        axes.set_xlim(0, 100)
        axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        _head(figure, title)

    most = max(gates, key=lambda gate: max(gate.shut, gate.open))
    often, state = (most.shut, "shut") if most.shut > most.open else (most.open, "wide open")
    where = f", layer {most.layer}" if many else ""
    title = f"{most.name.capitalize()} gates{where}: {state} {share(often)} of the time"
    return Panel(
        title if often >= _RARELY else "No gate is shut or wide open for long",
        f"Share of gate values below {SHUT} and above {OPEN}, over all units, steps and sequences. A saturated gate "
        "passes no gradient to what steers it. For memory itself, a keeping gate (an LSTM's forget gate, a GRU's "
        "update gate) that is wide open is what lets a gradient live.",
        draw,
    )


def _norms(findings: Findings) -> Panel:
    norms = findings.measurement.norms

    def draw(figure: FigureBase, title: str) -> None:
        axes = figure.subplots()
        parts = np.array_split(np.arange(len(norms.updates)), min(_PLACES, len(norms.updates)))
        updates, before, after = (np.array(values) for values in (norms.updates, norms.before, norms.after))
        places = np.array([updates[part].mean() for part in parts])
        middle = np.array([np.median(before[part]) for part in parts])
        highest = np.array([before[part].max() for part in parts])
        axes.fill_between(places, middle, highest, color=_FAINT, alpha=0.3, linewidth=0)
        axes.plot(places, middle, color=_INK, linewidth=1.3, label="before clipping (shaded up to the largest)")
        if norms.clipped:
            clipped = [np.median(after[part]) for part in parts]
            axes.plot(places, clipped, color=_MAIN, linewidth=1.3, label="after clipping")
        axes.set_yscale("log")
        decades = np.log10([max(after.min(), _FLOOR), highest.max()])
        axes.set_ylim(0.8 * 10 ** np.floor(decades[0]), 1.25 * 10 ** np.ceil(decades[1]))
        axes.set_xlabel("update")
        axes.set_ylabel("norm of the gradient")
        _head(figure, title)
        axes.legend(frameon=False, fontsize=8)

    if norms.clipped:
        title = f"Clipping shortened {share(norms.clipped)} of the updates"
    else:
        title = (
            f"No update was clipped; the largest norm is {number(max(norms.before) / norms.median)} times the median"
        )
    return Panel(
        title,
        "The global norm of the gradient through training, before and after clipping, as the run recorded it.",
        draw,
    )


def _end(whole: Survival, horizon: int) -> int:
    """The last step back to draw: a little behind what matters."""
    gone = whole.reach(_FLOOR)
    return whole.steps if gone is None else min(whole.steps, max(gone + 1, round(1.2 * horizon), 2))


def _cycle(count: int) -> list[str]:
    return [_LAYERS[i % len(_LAYERS)] for i in range(count)]


def _head(figure: FigureBase, title: str) -> None:
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")


def _label(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    offset: tuple[int, int],
    color: str,
    side: Literal["left", "right"] = "left",
) -> None:
    """Says of a line or mark what it is."""
    axes.annotate(
        text, place, offset, textcoords="offset points", color=color, fontsize=8.5, annotation_clip=False, ha=side
    )
