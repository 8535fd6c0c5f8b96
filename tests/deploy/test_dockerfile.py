"""The image: linted, built from files that exist, not root, and its health check works on the real server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.deploy.programs import ROOT, Server, Stage


def copied(stages: dict[str, Stage]) -> list[str]:
    """Sources of every COPY from the build context."""
    copies = [value.split() for stage in stages.values() for kind, value in stage.instructions if kind == "COPY"]
    return [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("no hadolint for this platform")
    lint = subprocess.run([hadolint, "deploy/Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (lint.returncode, lint.stdout) == (0, "")


def test_every_copied_path_exists_and_is_in_the_context(stages: dict[str, Stage]) -> None:
    ignore = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    sources = copied(stages)
    assert "pyproject.toml" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in ignore, source


def test_stages_are_copied_from_stages_that_exist(stages: dict[str, Stage]) -> None:
    names = list(stages)
    for at, stage in enumerate(stages.values()):
        for kind, value in stage.instructions:
            if kind == "COPY" and value.startswith("--from="):
                assert value.split()[0].removeprefix("--from=") in names[:at]


def test_the_last_stage_is_the_cpu_server_without_root(stages: dict[str, Stage]) -> None:
    name, last = list(stages.items())[-1]
    assert (name, last.parent) == ("cpu", "base")
    assert int(dict(stages["base"].instructions)["USER"]) > 0


def test_only_the_cuda_stages_have_torch(stages: dict[str, Stage]) -> None:
    installs = {name for name, stage in stages.items() if any("torch" in value for _, value in stage.instructions)}
    assert installs == {"build-cuda"}


def test_the_health_check_of_the_image_passes_on_a_server_and_fails_without(
    stages: dict[str, Stage], server: Server
) -> None:
    arguments = dict(stages["base"].instructions)["HEALTHCHECK"]
    command = json.loads(arguments.partition("CMD ")[2])
    command[0] = shutil.which(command[0], path=server.environment["PATH"])
    healthy = subprocess.run(command, env=server.environment, capture_output=True, text=True)
    assert (healthy.returncode, healthy.stdout) == (0, "SERVING\n")
    nobody = server.environment | {"HIDDENSTATE_PORT": "1"}
    alone = subprocess.run(command, env=nobody, capture_output=True, text=True)
    assert alone.returncode == 1
    assert alone.stdout.startswith("UNAVAILABLE: ")
