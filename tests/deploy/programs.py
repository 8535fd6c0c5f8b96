"""What the Dockerfile says, and servers started the way it says."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dockerfile_parse import DockerfileParser

from hiddenstate_server import healthcheck

ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 60


class Stage(NamedTuple):
    """One stage of the Dockerfile."""

    parent: str
    env: dict[str, str]
    """Including what it has from the stages it comes from."""
    instructions: list[tuple[str, str]]


def dockerfile_stages() -> dict[str, Stage]:
    """The stages of deploy/Dockerfile by name, in order."""
    parser = DockerfileParser(fileobj=io.StringIO((ROOT / "deploy/Dockerfile").read_text()))
    stages: dict[str, Stage] = {}
    for line in parser.structure:
        instruction, value = line["instruction"], line["value"]
        if instruction == "FROM":
            parent, _, name = value.split()
            stages[name] = stage = Stage(parent, dict(stages[parent].env) if parent in stages else {}, [])
        elif instruction == "ENV":
            stage.env.update(re.findall(r"(\w+)=(\S+)", value))
        elif instruction != "COMMENT":
            stage.instructions.append((instruction, value))
    return stages


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Server(NamedTuple):
    """A server that runs, and what it was given."""

    port: int
    metrics_port: int
    environment: dict[str, str]


@contextlib.contextmanager
def serving(command: Sequence[str], env: Mapping[str, str], bin_folder: Path, folder: Path) -> Iterator[Server]:
    """Runs a server's command with an image's environment, on free ports and with programs from `bin_folder`.

    It must become healthy, and exit with 0 when told to stop.
    """
    server = Server(free_port(), free_port(), {})
    server.environment.update(
        {**env, "PATH": f"{bin_folder}:{os.environ['PATH']}", "HOME": str(folder), "TMPDIR": str(folder)},
        HIDDENSTATE_PORT=str(server.port),
        HIDDENSTATE_METRICS_PORT=str(server.metrics_port),
        HIDDENSTATE_STATE_FOLDER=str(folder),
    )
    program = str(bin_folder / command[0])
    log = folder / "server.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [program, *command[1:]], env=server.environment, cwd=folder, stdout=out, stderr=out
        ) as process,
    ):
        try:
            give_up = time.monotonic() + SECONDS_TO_START
            while (health := healthcheck.status(f"localhost:{server.port}")) != "SERVING":
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < give_up, f"{health}\n{log.read_text()}"
                time.sleep(0.1)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0, log.read_text()
