"""The processes a benchmark is made of, each started for it and ended after it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bench.load import Load, Measured

SECONDS_TO_START = 120
SECONDS_TO_END = 10


class BenchError(Exception):
    """A process of the benchmark failed; the message has what it printed."""


class Started(NamedTuple):
    """A server that accepts connections."""

    port: int
    pid: int


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.create_server(("localhost", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def started(command: Sequence[str | Path], ports: Sequence[int], log: Path) -> Iterator[Started]:
    """Runs a server on `ports` until the block is left; BenchError with its log when it does not come up."""
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True) as process,
    ):
        try:
            give_up = time.monotonic() + SECONDS_TO_START
            while not all(map(accepts, ports)):
                if process.poll() is not None or time.monotonic() > give_up:
                    raise BenchError(f"{command[0]} did not start:\n{log.read_text()}")
                time.sleep(0.05)
            yield Started(ports[0], process.pid)
        finally:
            end(process)


@contextlib.contextmanager
def served(
    folder: Path, *flags: object, metrics_port: int = 0, program: Sequence[str | Path] = ()
) -> Iterator[Started]:
    """hiddenstate-server, or a `program` that takes its flags, with its store and its log in `folder`."""
    port = free_port()
    command = [*(program or [Path(sys.executable).with_name("hiddenstate-server")]), "--port", str(port)]
    command += ["--metrics-port", str(metrics_port), "--log-level", "warning"]
    command += ["--state-folder", str(folder / "state"), *map(str, flags)]
    ports = [port, metrics_port] if metrics_port else [port]
    with started(command, ports, folder / "server.log") as server:
        yield server


def end(process: subprocess.Popen[bytes]) -> None:
    """Asks the leader of a session to end, and kills what it leaves behind."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_END)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def accepts(port: int) -> bool:
    """Whether something listens on the port."""
    try:
        socket.create_connection(("localhost", port), timeout=1).close()
    except OSError:
        return False
    return True


def python(module: str, *arguments: object) -> Any:
    """What `python -m module arguments` prints, read as JSON; BenchError with its errors when it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{module} failed:\n{done.stderr}")
    return json.loads(done.stdout)


@contextlib.contextmanager
def lines(module: str, *arguments: object) -> Iterator[Iterator[Any]]:
    """What `python -m module arguments` prints, each line read as JSON as it comes; BenchError when it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):

        def read() -> Iterator[Any]:
            assert process.stdout is not None
            yield from map(json.loads, process.stdout)
            if process.wait():
                errors.seek(0)
                raise BenchError(f"{module} failed:\n{errors.read()}")

        try:
            yield read()
        finally:
            process.kill()


def measured(load: Load, generator: str = "bench.load") -> Measured:
    """Runs a load generator."""
    return Measured(**python(generator, json.dumps(asdict(load))))
