"""The norm of the gradient through training, before and after clipping, as a run's TensorBoard events tell it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

BEFORE, AFTER = "gradient/norm", "gradient/clipped_norm"
"""Names of the scalars."""
SPIKE = 10.0
"""A norm so many times the median is a spike."""


@dataclass
class Norms:
    """Global gradient norms, one entry an update."""

    updates: list[int] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Those of all event files in a run's folder; a resumed run's updates count once."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        if not {BEFORE, AFTER} <= set(events.Tags()["scalars"]):
            return cls()
        before = {event.step: event.value for event in events.Scalars(BEFORE)}
        after = {event.step: event.value for event in events.Scalars(AFTER)}
        updates = sorted(before.keys() & after.keys())
        return cls(updates, [before[update] for update in updates], [after[update] for update in updates])

    def add(self, update: int, before: float, after: float) -> None:
        """Notes an update."""
        self.updates.append(update)
        self.before.append(before)
        self.after.append(after)

    @property
    def clipped(self) -> float:
        """Share of updates whose gradient was shortened."""
        return float(np.mean(np.array(self.after) < 0.999 * np.array(self.before)))

    @property
    def median(self) -> float:
        """Median norm before clipping."""
        return float(np.median(self.before))

    @property
    def spikes(self) -> int:
        """Updates whose norm before clipping was `SPIKE` times the median or more."""
        return int(np.sum(np.array(self.before) >= SPIKE * self.median))
