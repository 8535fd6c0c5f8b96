"""`hiddenstate sessions`, as processes against a fake server; and what the command does when its server dies."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client.test_cli import COMMAND, run

from hiddenstate import Client, Session


class Server:
    """A fake server in a process that can be killed and started again where it was."""

    def __init__(self, port: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.client.fake", str(port)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.address = f"localhost:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def fake() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def environment(fake: Server) -> dict[str, str]:
    return {**os.environ, "HIDDENSTATE_SERVER": fake.address, "TERM": "xterm", "COLUMNS": "160", "PYTHONUTF8": "1"}


@pytest.fixture
def session(fake: Server) -> Iterator[Session]:
    """A session with three observations and a label."""
    with Client(fake.address, timeout=20.0) as client:
        session = client.session("values", id="mine", labels={"user": "me"})
        session.observe_many([1.0, 2.0, 3.0])
        client.session("words", id="other")
        yield session


@pytest.mark.usefixtures("session")
def test_lists(environment: dict[str, str]) -> None:
    header, _, *rows = run(environment, "sessions").stdout.strip().splitlines()
    assert header.split()[:4] == ["Session", "Model", "Steps", "Durable"]
    assert re.search(r"mine +values@3 +3 +0 .* arena +user=me", rows[0])
    assert len(rows) == 2
    for filters in (["--model", "values"], ["--label", "user=me"], ["list", "--label", "user=me", "--idle", "0s"]):
        listed = json.loads(run(environment, "sessions", *filters, "--json").stdout)
        assert [(entry["id"], entry["labels"]) for entry in listed] == [("mine", {"user": "me"})]
    assert json.loads(run(environment, "sessions", "--idle", "10m", "--json").stdout) == []
    assert "KEY=VALUE" in run(environment, "sessions", "--label", "user", code=2).stderr
    assert "90s" in run(environment, "sessions", "--idle", "soon", code=2).stderr
    assert "close" in run(environment, "sessions", "--help").stdout


def test_show(environment: dict[str, str], session: Session) -> None:
    text = run(environment, "sessions", "show", session.id).stdout
    assert re.search(r"Model +values@3", text)
    assert re.search(r"Labels +user=me", text)
    assert json.loads(run(environment, "sessions", "show", session.id, "--json").stdout)["step"] == 3
    assert "SESSION_NOT_FOUND" in run(environment, "sessions", "show", "never", code=1).stderr


@pytest.mark.usefixtures("session")
def test_close(environment: dict[str, str]) -> None:
    assert "Aborted" in run(environment, "sessions", "close", "mine", stdin="n\n", code=1).stderr
    assert "1 session ended" in run(environment, "sessions", "close", "--label", "user=me", stdin="y\n").stdout
    assert "1 session ended" in run(environment, "sessions", "close", "other", "--yes").stdout
    assert "0 sessions ended" in run(environment, "sessions", "close", "--model", "words", "--yes").stdout
    assert "1 of 1" in run(environment, "sessions", "close", "other", "--yes", code=1).stderr
    assert "say which" in run(environment, "sessions", "close", "--yes", code=2).stderr


def test_copies(environment: dict[str, str], session: Session, tmp_path: Path) -> None:
    forks = run(environment, "sessions", "fork", session.id, "-n", "2").stdout.split()
    assert len(set(forks)) == 2
    file = tmp_path / "snapshot"
    run(environment, "sessions", "export", session.id, "-o", str(file))
    assert run(environment, "sessions", "restore", str(file), "--id", "restored").stdout.split() == ["restored"]
    assert json.loads(run(environment, "sessions", "show", "restored", "--json").stdout)["step"] == 3
    assert run(environment, "sessions", "export", session.id, "-o", "-").stdout.startswith("snapshot:")
    file.write_bytes(b"forged")
    assert "SNAPSHOT_INVALID" in run(environment, "sessions", "restore", str(file), code=1).stderr
    assert "No such file" in run(environment, "sessions", "restore", str(tmp_path / "none"), code=1).stderr
    assert "cannot be written" in run(environment, "sessions", "export", "mine", "-o", str(tmp_path), code=1).stderr


def test_following(environment: dict[str, str], session: Session) -> None:
    with subprocess.Popen(
        [COMMAND, "sessions", "watch", session.id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().split() == ["step", "surprise", "expected", "next"]
        assert process.stdout.readline().split()[:3] == ["3", "3.00", "6"]
        session.observe(4.0)
        assert process.stdout.readline().split()[:3] == ["4", "4.00", "10"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_a_token_is_not_echoed(environment: dict[str, str]) -> None:
    secret = {**environment, "HIDDENSTATE_TOKEN": "a-secret", "COLUMNS": "300"}
    for arguments in (["sessions", "list", "--help"], ["models"], ["sessions", "show", "never"], ["models", "--nope"]):
        done = subprocess.run([COMMAND, *arguments], env=secret, capture_output=True, text=True, timeout=60)
        assert "a-secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_that_is_killed(fake: Server, environment: dict[str, str], comes_back: bool) -> None:
    with subprocess.Popen(
        [COMMAND, "watch", "--model", "values", "--timeout", "60" if comes_back else "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("1\n2\n")
        process.stdin.flush()
        for _ in range(2):
            process.stdout.readline()
        process.stdout.readline()
        fake.kill()
        process.stdin.write("3\n")
        process.stdin.flush()
        time.sleep(0.2)
        if not comes_back:
            assert "2 values" in process.stdout.read()
            assert process.wait(60) == 1
            assert process.stderr.read().startswith("no server can be reached")
            return
        again = Server(fake.port)
        try:
            assert process.stdout.readline().split()[-1] == "6.0"  # the sum of what was observed
            process.stdin.close()
            assert "3 values" in process.stdout.read()
            assert process.wait(60) == 0
        finally:
            again.kill()
