"""What is served and who uses it, as tables and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from hiddenstate import Model, SessionInfo
from hiddenstate.cli.console import Access, out

_NUMBERS = {"State", "Sessions", "Steps", "Durable", "Age", "Idle", "Ends in"}


def show_models(access: Access, as_json: bool) -> None:
    """Prints what is served."""
    with access.client() as client:
        models = client.models()
    if as_json:
        _print_json([_model(model) for model in models])
        return
    table = _table("Model", "Predicts", "Description", "State", "Sessions", "Runtime")
    for model in models:
        table.add_row(
            f"[bold]{model.name}[/bold]@{model.version}",
            model.task.removeprefix("next-"),
            f"{model.description}, labels {', '.join(model.label_names)}" if model.label_names else model.description,
            _bytes(model.state_bytes),
            f"{model.live_sessions:,}",
            model.runtime,
        )
    out.print(table if models else "The server serves no models.")


def print_sessions(sessions: list[SessionInfo], as_json: bool) -> None:
    """Prints live sessions."""
    if as_json:
        _print_json([_session(session) for session in sessions])
        return
    table = _table("Session", "Model", "Steps", "Durable", "Age", "Idle", "Ends in", "Held", "Place", "Labels")
    now = datetime.now(UTC)
    for session in sessions:
        table.add_row(
            session.id,
            f"{session.model}@{session.version}",
            f"{session.step:,}",
            f"{session.durable_step:,}",
            _span((now - session.created).total_seconds()),
            _span((now - session.last_used).total_seconds()),
            _span((session.expires - now).total_seconds()),
            "yes" if session.attached else "no",
            session.place,
            escape(_labels(session)),
        )
    out.print(table if sessions else "There are no such sessions.")


def _table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for header in headers:
        table.add_column(
            header,
            justify="right" if header in _NUMBERS else "left",
            overflow="fold",
            no_wrap=header in _NUMBERS or header == "Model",
        )
    return table


def _model(model: Model) -> dict[str, Any]:
    entry = asdict(model)
    del entry["vocabulary"]
    return entry | {"notes": list(model.notes)}


def _session(session: SessionInfo) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(session).items()
    }


def _print_json(entries: list[dict[str, Any]]) -> None:
    out.print_json(json.dumps(entries))


def print_session(session: SessionInfo, as_json: bool) -> None:
    """Prints everything about one session."""
    if as_json:
        out.print_json(json.dumps(_session(session)))
        return
    now = datetime.now(UTC)
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = {
        "Session": session.id,
        "Model": f"{session.model}@{session.version}",
        "Shadow": session.shadow or "none",
        "Steps": f"{session.step:,}, of which {session.durable_step:,} are in the store",
        "Rewound": f"{session.rewinds:,} times",
        "Opened": f"{session.created:%Y-%m-%d %H:%M:%S} UTC, {_span((now - session.created).total_seconds())} ago",
        "Last used": f"{_span((now - session.last_used).total_seconds())} ago",
        "Lease": f"{_span(session.idle_timeout)}, {_span((session.expires - now).total_seconds())} left",
        "Held": "by a client" if session.attached else "by nobody",
        "Place": f"{session.place}, {_bytes(session.bytes)}",
        "Labels": _labels(session) or "none",
    }
    for name, text in rows.items():
        table.add_row(f"[bold]{name}[/bold]", escape(text))
    out.print(table)


def _labels(session: SessionInfo) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(session.labels.items()))


def _bytes(count: int) -> str:
    return f"{count:,} B" if count < 10_000 else f"{count / 1024:,.1f} KiB"


def _span(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
