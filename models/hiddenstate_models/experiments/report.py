"""What there is of an experiment: its settings, a table of all arms, the curves, the conclusion."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from hiddenstate_models.experiments.experiment import Arm, Experiment, Group
from hiddenstate_models.experiments.wording import listed, spread

SETTINGS_FILE, PLOT_FILE, REPORT_FILE = "experiment.json", "curves.png", "report.md"

Row = tuple[str, ...]


def save_settings(experiment: Experiment, arms: Sequence[Arm], folder: Path) -> None:
    """Writes experiment.json: what every arm is told, and by which versions."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = {name: version(name) for name in ("hiddenstate", "torch")}
    told = {"experiment": experiment.name, "versions": versions, "arms": {arm.name: arm.settings for arm in arms}}
    (folder / SETTINGS_FILE).write_text(json.dumps(told, indent=2) + "\n")


def write(experiment: Experiment, groups: Sequence[Group], seeds: int, folder: Path) -> None:
    """Writes curves.png, and report.md with the question, the curves, the table and the conclusion."""
    found = [group for group in groups if group.results]
    experiment.draw(found).savefig(folder / PLOT_FILE, dpi=140)
    head, *body = table(experiment, found, seeds)
    lines = [head, ("---",) * len(head), *body]
    parts = [
        f"# {experiment.title}",
        experiment.question,
        f"![{experiment.title}]({PLOT_FILE})",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        experiment.conclude(found),
        not_run(groups),
    ]
    (folder / REPORT_FILE).write_text("\n\n".join(part for part in parts if part) + "\n")


def not_run(groups: Sequence[Group]) -> str:
    """Names the arms without any result; empty if there are none."""
    panels: dict[str, list[Group]] = {}
    for group in groups:
        panels.setdefault(group.arm.panel, []).append(group)
    parts = []
    for panel, here in panels.items():
        absent = [group.arm.label for group in here if not group.results]
        if absent:
            parts.append(f"{panel}: {' · '.join(absent) if len(absent) < len(here) else 'all arms'}")
    return f"Not run yet: {'; '.join(parts)}." if parts else ""


def table(experiment: Experiment, groups: Sequence[Group], seeds: int) -> list[Row]:
    """A row for every arm below the head; scores are the median of the seeds, smallest and largest in parentheses."""
    head = ("", "arm", "seeds", "ended", experiment.unit, "published")
    return [head, *(_row(experiment, group, seeds) for group in groups)]


def _row(experiment: Experiment, group: Group, seeds: int) -> Row:
    arm = group.arm
    return (
        arm.panel,
        arm.label,
        f"{len(group.results)} of {seeds}",
        _ended(group),
        spread(group.scores(experiment.score)),
        arm.published,
    )


def _ended(group: Group) -> str:
    """Such as "2 solved after 900 to 1,400 updates and 1 finished after 6,000"."""
    parts = []
    for how in ("solved", "finished", "stuck", "diverged"):
        updates = sorted(result.outcome.updates for result in group.results if result.outcome.ended == how)
        if updates:
            first, last = f"{updates[0]:,}", f"{updates[-1]:,}"
            after = first if first == last else f"{first} to {last}"
            parts.append(f"{len(updates)} {how} after {after} updates")
    return listed(parts) or "-"
