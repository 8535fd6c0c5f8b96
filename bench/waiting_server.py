"""hiddenstate-server with a batching timer: `python -m bench.waiting_server MILLISECONDS FLAGS...`.

What is ready waits until the oldest of it has waited so long, or until there is enough for a full step, as servers
with a batching delay do it. Nothing else differs, and the product knows nothing of it.
"""

import asyncio
import math
import sys

from hiddenstate_server import main
from hiddenstate_server.process import worker
from hiddenstate_server.stepping.model import ServedModel


def ready_rows(model: ServedModel) -> int:
    """How many rows a step could take."""
    return sum(map(len, model.scheduler._ready))


def oldest(model: ServedModel) -> float:
    """When the oldest of what is ready came in, in monotonic seconds."""
    scheduler = model.scheduler
    return min(float(scheduler._received[chunk].min()) for chunk in scheduler._ready)


class WaitingWorker(worker.Worker):
    """A worker whose steps wait for company."""

    delay = 0.0
    """Seconds."""

    _timer: asyncio.TimerHandle | None = None
    """Runs while something waits for company."""

    def _wake(self) -> None:
        if self._work is not None and not self._work.done() and (self._timer is None or self._left() <= 0):
            self._work.set_result(None)

    async def _run_engine(self) -> None:
        while True:
            while (left := self._left()) > 0:
                await self._woken(left)
            self.host.tick()
            await asyncio.sleep(0)

    async def _woken(self, seconds: float) -> None:
        """Waits until `_wake` finds something, or so many seconds."""
        loop = asyncio.get_running_loop()
        self._work = loop.create_future()
        if seconds < math.inf:
            self._timer = loop.call_later(seconds, self._work.set_result, None)
        await self._work
        if self._timer is not None:
            self._timer.cancel()
        self._work = self._timer = None

    def _left(self) -> float:
        """Seconds that what is ready still waits; infinite where nothing is."""
        waiting = [model for model in self.host.models if model.scheduler.ready]
        if not waiting:
            return math.inf
        if any(ready_rows(model) >= model.engine.max_batch for model in waiting):
            return 0.0
        return min(map(oldest, waiting)) + self.delay - self.host.clock()


if __name__ == "__main__":
    WaitingWorker.delay = float(sys.argv.pop(1)) / 1e3
    worker.Worker = WaitingWorker  # type: ignore[misc]
    main.main()
