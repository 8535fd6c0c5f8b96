"""A picture of a watched series."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from hiddenstate.cli.console import exact_percent, fail

if TYPE_CHECKING:
    from hiddenstate.cli.watch import Watcher

_INK, _BLUE, _RED = "#222222", "#1f6fb4", "#d1242f"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}


def draw(watcher: Watcher, file: Path) -> None:
    """Draws values, what was expected, its interval and the anomalies, one panel a series."""
    labels = [label for part in watcher.kept for label in part[0]]
    seen = np.concatenate([part[1] for part in watcher.kept])
    mean, lower, upper = (
        np.concatenate([getattr(part[2], name) for part in watcher.kept]) for name in ("mean", "lower", "upper")
    )
    anomalies = np.concatenate([part[3] for part in watcher.kept])
    x = _axis(labels)
    with mpl.rc_context(STYLE):
        panels = len(watcher.tallies)
        figure = Figure(figsize=(11, 1.6 + 3.0 * panels), layout="constrained")
        for j, axes in enumerate(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]):
            _panel(
                axes, x, seen[:, j], mean[:, j], lower[:, j], upper[:, j], anomalies[:, j], exact_percent(watcher.level)
            )
            title = watcher.tallies[j].name
            axes.set_title("" if title.isdecimal() else title, loc="left", color=_INK, fontweight="bold")
            if j == 0:
                axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, frameon=False, borderaxespad=0.2)
        try:
            figure.savefig(file, dpi=150)
        except (OSError, ValueError) as error:
            raise fail(f"{file} cannot be drawn: {error}") from None


def _panel(axes: Any, x: Any, seen: Any, mean: Any, lower: Any, upper: Any, anomalies: Any, level: str) -> None:
    axes.fill_between(x, lower, upper, color=_BLUE, alpha=0.2, linewidth=0, label=f"{level} interval")
    axes.plot(x, mean, color=_BLUE, linewidth=1.2, label="expected")
    axes.plot(x, seen, color=_INK, linewidth=0.9, marker="." if len(x) <= 200 else "", markersize=4, label="value")
    hits = np.flatnonzero(anomalies)
    axes.scatter(
        [x[i] for i in hits],
        seen[hits],
        s=42,
        facecolor="none",
        edgecolor=_RED,
        linewidth=1.5,
        zorder=3,
        label="anomaly",
    )
    _focus(axes, seen, mean)
    axes.margins(x=0.01)


def _focus(axes: Any, seen: Any, mean: Any) -> None:
    """Scales to values and expectations, so that a wide interval of the first steps does not squeeze the rest."""
    shown = np.concatenate([seen, mean])
    shown = shown[np.isfinite(shown)]
    if shown.size:
        low, high = float(shown.min()), float(shown.max())
        margin = 0.12 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)


def _axis(labels: list[str]) -> Any:
    """Times where all labels are times in order, else places in the input."""
    try:
        times = [datetime.fromisoformat(label) for label in labels]
        if all(earlier <= later for earlier, later in pairwise(times)):
            return times
    except (TypeError, ValueError):  # no times, or some with and some without a zone
        pass
    return range(1, len(labels) + 1)
