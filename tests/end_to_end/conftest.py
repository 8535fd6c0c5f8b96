"""Real server processes."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECONDS_TO_START = 60.0


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server on a free port: its address and its process."""
    command = [str(Path(sys.executable).with_name("hiddenstate-server")), "--port", "0", "--metrics-port", "0", *flags]
    log = folder / "server.log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        deadline = time.monotonic() + SECONDS_TO_START
        while not (found := re.search(r"ready on (\S+:\d+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.05)
        try:
            yield found[1], process
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with the models that come with the package."""
    with serving(tmp_path_factory.mktemp("shipped")) as (address, _):
        yield address
