"""What docker-compose.yml says, and its server outside a container."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.programs import ROOT, Server, Stage, dockerfile_stages, serving


@pytest.fixture(scope="session")
def stages() -> dict[str, Stage]:
    """The stages of the Dockerfile by name, in order."""
    return dockerfile_stages()


@pytest.fixture(scope="session")
def entry_point(stages: dict[str, Stage]) -> list[str]:
    """The command of the image."""
    command: list[str] = json.loads(dict(stages["base"].instructions)["ENTRYPOINT"])
    return command


@pytest.fixture(scope="session")
def services() -> dict[str, Any]:
    """The services of docker-compose.yml."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return services


@pytest.fixture(scope="module")
def server(
    stages: dict[str, Stage],
    entry_point: list[str],
    services: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The server of docker-compose.yml: the image's entry point and environment, the service's flags."""
    command = [*entry_point, *services["server"]["command"]]
    folder = tmp_path_factory.mktemp("server")
    with serving(command, stages["cpu"].env, Path(sys.executable).parent, folder) as running:
        yield running


@pytest.fixture(scope="session")
def prometheus() -> str:
    """The real Prometheus; `make test` fetches it from Debian."""
    path = shutil.which("prometheus", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if path is None:
        pytest.skip("no Prometheus: `make prometheus` fetches it on Debian")
    return path
