"""Real processes that can be killed, stopped for a while and started again where they were."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

SECONDS_TO_START = 60.0
SECONDS_TO_STOP = 60.0
COMMAND = str(Path(sys.executable).with_name("hiddenstate-server"))


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def http_get(port: int, path: str) -> str:
    """A page of this machine."""

    def get() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            page: bytes = answer.read()
            return page

    return (await asyncio.to_thread(get)).decode()


class Program:
    """A program with a log, started any number of times; `alive` while it runs."""

    def __init__(self, command: Sequence[str], log: Path, ready: str) -> None:
        self.command = list(command)
        self.log = log
        self._ready = re.compile(ready)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process, or the one that ran last."""
        assert self._process is not None, "never started"
        return self._process

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Starts it and does not wait."""
        assert not self.alive
        self._printed = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(self.command, stdout=output, stderr=output)

    async def start(self) -> None:
        """Starts it and waits for its ready line."""
        self.spawn()
        await self.ready()

    async def ready(self) -> None:
        """Waits for the ready line of the latest start; AssertionError with the log when none comes."""
        give_up = time.monotonic() + SECONDS_TO_START
        while not self._ready.search(self.printed()):
            assert self.alive, f"{self.command[0]} did not start:\n{self.printed()}"
            assert time.monotonic() < give_up, f"{self.command[0]} is not ready:\n{self.printed()}"
            await asyncio.sleep(0.02)

    def printed(self) -> str:
        """What it has logged since its latest start."""
        return self.log.read_bytes()[self._printed :].decode()

    def kill(self) -> None:
        """SIGKILL for it and its children; returns when they are gone."""
        family = [psutil.Process(self.process.pid)]
        family += family[0].children(recursive=True)
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=SECONDS_TO_STOP)
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    async def exit_code(self) -> int:
        """Waits for its end."""
        return await asyncio.to_thread(self.process.wait, SECONDS_TO_STOP)

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return await self.exit_code()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Started while the block runs, and ended with it however often it was started again."""
        try:
            await self.start()
            yield
        finally:
            if self.alive:
                self.kill()


class Server(Program):
    """A hiddenstate-server on a port of its own that it keeps over restarts."""

    def __init__(
        self, folder: Path, models: Path, *flags: str, name: str = "server", launcher: Sequence[str] = ()
    ) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--metrics-port", str(self.metrics_port)]
        command = [*launcher, COMMAND, *where, "--models", str(models), "--state-folder", str(folder / name)]
        super().__init__([*command, *flags], folder / f"{name}.log", r"ready on \S+:\d+")

    @property
    def address(self) -> str:
        """For clients."""
        return f"127.0.0.1:{self.port}"

    def workers(self) -> list[psutil.Process]:
        """Its worker processes, where there are several."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    async def is_healthy(self, service: str, wanted: bool = True) -> bool:
        """Whether grpc.health.v1 answers as wanted: SERVING, or NOT_SERVING."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        statuses = health_pb2.HealthCheckResponse
        return bool(answer.status == (statuses.SERVING if wanted else statuses.NOT_SERVING))

    async def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        text = await http_get(self.metrics_port, "/metrics")
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == name)


def redis_command() -> str | None:
    """The real Valkey or Redis server; `make test` fetches one from Debian."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return shutil.which("valkey-server", path=path) or shutil.which("redis-server", path=path)


class Redis(Program):
    """A real Valkey or Redis that has on disk whatever it acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        data = folder / "redis"
        data.mkdir(parents=True, exist_ok=True)
        flags = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(data), "--save", ""]
        flags += ["--appendonly", "yes", "--appendfsync", "always"]
        command = redis_command()
        assert command, "no Valkey and no Redis here"
        super().__init__([command, *flags], folder / "redis.log", "Ready to accept connections")

    @property
    def url(self) -> str:
        """For --store."""
        return f"redis://127.0.0.1:{self.port}/0"


def in_small_tmpfs(mount_point: Path, size: str) -> list[str]:
    """A launcher that mounts a tmpfs of `size` which only the launched process sees.

    From outside it is at /proc/PID/root/MOUNT_POINT. The launched process keeps the launcher's PID.
    """
    mount_point.mkdir(parents=True, exist_ok=True)
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(mount_point)]


def namespaces_allowed() -> bool:
    """Whether this user may make the name spaces that a small tmpfs needs."""
    if not Path("/usr/bin/unshare").exists():
        return False
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, env=os.environ | {"LC_ALL": "C"}).returncode == 0
