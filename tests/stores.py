"""Real Redis (or Valkey) servers, alone and as a cluster, for tests that keep sessions in them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

_SLOTS = 16_384
_SECONDS_TO_START = 20


class RedisServer:
    """One server on a free port that has on disk whatever it acknowledged."""

    def __init__(self, command: str, folder: Path, *flags: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._log = folder / "redis.log"
        self._command = [command, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        self._command += ["--appendonly", "yes", "--appendfsync", "always", *flags]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For open_store."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        """A client of this server alone."""
        return redis.Redis(port=self.port)

    def start(self) -> None:
        """Returns once it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until = time.monotonic() + _SECONDS_TO_START
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert time.monotonic() < until, self._log.read_text()
                    time.sleep(0.02)

    def kill(self) -> None:
        """As a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Killed, and started on the same port and data."""
        self.kill()
        self.start()

    def empty(self) -> None:
        """Forgets everything."""
        with self.client() as client:
            client.flushall()


class RedisCluster:
    """A cluster of servers that share the slots."""

    def __init__(self, servers: list[RedisServer]) -> None:
        self.servers = servers

    @property
    def url(self) -> str:
        """For open_store; the first server tells of the others."""
        return f"redis+cluster://127.0.0.1:{self.servers[0].port}"

    def form(self) -> None:
        """Deals out the slots and introduces the servers to each other."""
        share = -(-_SLOTS // len(self.servers))
        clients = [server.client() for server in self.servers]
        for number, client in enumerate(clients):
            client.cluster("ADDSLOTS", *range(number * share, min((number + 1) * share, _SLOTS)))
            client.cluster("MEET", "127.0.0.1", self.servers[0].port)
        self.wait()
        for client in clients:
            client.close()

    def wait(self) -> None:
        """Until every server finds the cluster whole."""
        until = time.monotonic() + _SECONDS_TO_START
        for server in self.servers:
            with server.client() as client:
                while client.cluster("INFO")["cluster_state"] != "ok":
                    assert time.monotonic() < until
                    time.sleep(0.05)

    def empty(self) -> None:
        """Forgets everything."""
        for server in self.servers:
            server.empty()


def redis_command() -> str:
    """The program; skips the test where there is none."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = shutil.which("valkey-server", path=path) or shutil.which("redis-server", path=path)
    if command is None:
        pytest.skip("no Redis or Valkey: `make redis` fetches one on Debian")
    return command


@contextlib.contextmanager
def redis_server(folder: Path, *flags: str) -> Iterator[RedisServer]:
    """A server that runs, with its data in the folder."""
    server = RedisServer(redis_command(), folder, *flags)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def redis_cluster(folder: Path, count: int = 3) -> Iterator[RedisCluster]:
    """A cluster that runs, with its data in the folder."""
    with contextlib.ExitStack() as stack:
        flags = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]
        servers = [stack.enter_context(redis_server(folder / str(number), *flags)) for number in range(count)]
        cluster = RedisCluster(servers)
        cluster.form()
        yield cluster


def free_port() -> int:
    """A TCP port nobody listens on; a cluster's servers also take the one 10,000 above it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
        if port + 10_000 < 65_536:
            return port
