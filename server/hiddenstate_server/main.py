"""The `hiddenstate-server` command."""

from __future__ import annotations

import asyncio
import os
import sys

from hiddenstate_server import logs
from hiddenstate_server.errors import StartError
from hiddenstate_server.settings import Settings, load


def main() -> None:
    """Serves; exits with 2 and one sentence when it cannot start."""
    # More threads beside a busy event loop cost, not gain; numpy reads this when it is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        _serve(load(sys.argv[1:]))
    except StartError as error:
        print(f"hiddenstate-server: {error}", file=sys.stderr)
        sys.exit(2)


def _serve(settings: Settings) -> None:
    # The heavy imports come after the settings, so that a typing mistake is answered at once.
    logs.configure(settings.log_format, settings.log_level)
    if settings.workers > 1:
        from hiddenstate_server.process.supervisor import supervise

        supervise(settings)
        return
    import uvloop

    from hiddenstate_server.process.worker import serve

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))
