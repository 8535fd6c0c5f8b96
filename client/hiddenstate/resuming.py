"""How a session goes on that was found again on a server, which may have lost some of it or know more of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """What the client knows of a session; steps count observations."""

    rewinds: int
    """Rewinds that were answered."""
    answered: int
    """Up to this step nothing is awaited."""
    sent: int
    """The last step sent."""
    kept: int
    """Later observations can be sent again."""
    target: int | None
    """Where the rewind goes that is awaited; it was sent after everything else was answered."""
    rewind_limit: int
    """How many observations the server takes back."""


@dataclass(frozen=True, slots=True)
class Way:
    """What to do: rewind, then send what comes after `step`."""

    step: int
    """Where the server is, once it was rewound."""
    rewind: int | None = None
    """Number of the rewind that goes there."""
    lost: int = 0
    """Up to this step answers cannot be had any more."""


def way_on(known: Known, step: int, rewinds: int, lowest: int) -> Way | None:
    """How to go on from `step` after `rewinds`, where the server is; None where there is no way.

    `lowest` is the earliest step that the session was at since then. What the server holds is a state the session
    once had: it may lack rewinds and observations, or have some whose answers were lost with the connection.
    """
    if rewinds > known.rewinds:
        applied = known.target is not None and rewinds == known.rewinds + 1
        return Way(step) if applied else None  # else somebody else rewound it
    wanted = known.answered if known.target is None else known.target
    if rewinds < known.rewinds:
        # a rewind that is awaited goes on from wherever the one before it is made again
        to = min(step, lowest) if known.target is not None else min(step, lowest, wanted)
        return Way(to, rewind=known.rewinds) if to >= known.kept else None
    if step <= wanted:
        return Way(step) if step >= known.kept else None
    if known.target is not None:
        return Way(step)
    if step > known.sent:
        return Way(step, lost=step)  # somebody else went on with it
    if step == known.answered + 1:
        return Way(known.answered)  # the last observation may be sent again, to be answered again
    if step - known.answered <= known.rewind_limit:
        return Way(known.answered, rewind=rewinds + 1)
    return Way(step - 1, lost=step - 1)
