"""The commands people type first."""

import os
import subprocess
import sys
from pathlib import Path

from tests.deploy.programs import ROOT

PNG = b"\x89PNG\r\n\x1a\n"


def test_help_lists_the_commands() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for command in ("setup", "demo", "test", "check", "proto", "bench"):
        assert f"make {command} " in listed


def test_setup_says_what_it_needs_when_there_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    shell_only = tmp_path / "bin"
    shell_only.mkdir()
    for program in ("sh", "make"):
        found = subprocess.run(["which", program], check=True, capture_output=True, text=True).stdout.strip()
        (shell_only / program).symlink_to(found)
    made = subprocess.run(
        ["make", "setup"], cwd=tmp_path, env={"PATH": str(shell_only)}, capture_output=True, text=True
    )
    assert made.returncode != 0
    assert "No Python 3.11 or newer" in made.stderr


def test_the_demo_runs_to_its_end(tmp_path: Path) -> None:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OUT": str(tmp_path)}
    demo = subprocess.run(
        [ROOT / "deploy/demo/demo.sh"], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert demo.returncode == 0, demo.stderr
    assert "next-word" in demo.stdout
    assert "next-value" in demo.stdout
    assert (tmp_path / "watch.png").read_bytes().startswith(PNG)
    assert "exited with 0" in demo.stdout
