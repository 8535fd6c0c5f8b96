"""Curves of experiments: a panel a comparison, a colour an arm, a line a seed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hiddenstate_models.experiments.experiment import Ending, Group

COLOURS = ("#1f6feb", "#d1481f", "#1a7f37", "#8250df", "#bf8700", "#0e8a9b", "#c2408f", "#57606a")
MARKS: Mapping[Ending, str] = {"solved": "o", "stuck": "|", "diverged": "X"}
_QUIET = "#8c959f"


@dataclass(frozen=True)
class View:
    """One curve of every run, by update."""

    curve: str
    ylabel: str
    log: bool = False
    levels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Horizontal lines to compare with, by panel and name; the first is named at its right end, others at the left."""


def panels(groups: Sequence[Group], *views: View) -> Figure:
    """A panel of each group's panel for each view: one view in rows of at most three, several in a row each."""
    names = list(dict.fromkeys(group.arm.panel for group in groups))
    columns = len(names) if len(views) > 1 else min(len(names), 2 if len(names) in (2, 4) else 3)
    rows = math.ceil(len(names) * len(views) / columns)
    figure = figure_of(columns, rows)
    colours = colours_of(groups)
    grid = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for row, view in enumerate(views):
        for name in names:
            axes = next(grid)
            style(axes, title="" if row else name, ylabel=view.ylabel, xlabel="updates")
            for group in groups:
                if group.arm.panel == name:
                    lines(axes, group, view.curve, colours[group.arm.label])
            for i, (label, level) in enumerate(view.levels.get(name, {}).items()):
                level_line(axes, level, label, side="right" if i == 0 else "left")
            if view.log:
                log_scale(axes)
    for axes in grid:
        axes.set_axis_off()
    legend(figure, colours)
    return figure


def figure_of(columns: int, rows: int) -> Figure:
    """An empty figure for so many panels."""
    return Figure(figsize=(max(4.4 * columns, 7), 3.0 * rows + 0.7), layout="constrained")


def colours_of(groups: Sequence[Group]) -> dict[str, str]:
    """A colour for every label."""
    labels = list(dict.fromkeys(group.arm.label for group in groups))
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}


def lines(axes: Axes, group: Group, curve: str, colour: str, *, scale: float = 1.0) -> None:
    """A line for each seed, updates times `scale`, with a mark where the run ended before its time; see MARKS."""
    for result in group.results:
        points = [(x * scale, y) for x, y in _finite(result.outcome.curves.get(curve, []))]
        if not points:
            continue
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=colour, linewidth=1.3, alpha=0.75, solid_capstyle="round")
        mark = MARKS.get(result.outcome.ended, "o" if len(points) == 1 else "")
        axes.plot(xs[-1], ys[-1], mark, color=colour, markersize=5, markeredgewidth=1.5)


def by_setting(axes: Axes, points: Sequence[tuple[float, Sequence[float]]]) -> None:
    """Scores over a setting on a logarithmic scale: a dot for each seed, a line through the medians."""
    ordered = sorted(points)
    axes.plot([x for x, _ in ordered], [median(ys) for _, ys in ordered], color=_QUIET, linewidth=1.2, zorder=1)
    for x, ys in ordered:
        axes.plot([x] * len(ys), ys, "o", color=COLOURS[0], markersize=4, alpha=0.75)
    axes.set_xscale("log")
    axes.set_xticks([x for x, _ in ordered], [f"{x:g}" for x, _ in ordered])
    axes.minorticks_off()


def style(axes: Axes, *, title: str, ylabel: str, xlabel: str) -> None:
    """The look that all panels share."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8.5, color=_QUIET)
    axes.grid(axis="y", color="#d0d7de", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_QUIET)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def log_scale(axes: Axes) -> None:
    """A logarithmic y axis that says plain numbers, more of them within a decade the fewer decades there are."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    between = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=between, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def level_line(axes: Axes, level: float, label: str, *, side: Literal["left", "right"]) -> None:
    """A horizontal line to compare with, named at one of its ends."""
    axes.axhline(level, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        label,
        (0.01 if side == "left" else 0.99, level),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
        color="#57606a",
        ha=side,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )


def legend(figure: Figure, colours: Mapping[str, str]) -> None:
    """The arms' colours above all panels."""
    handles = [Line2D([], [], color=colour, linewidth=2, label=label) for label, colour in colours.items()]
    columns = math.ceil(len(handles) / math.ceil(len(handles) / 4))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def _finite(curve: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    return ((x, y) for x, y in curve if math.isfinite(y))
