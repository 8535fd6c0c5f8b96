"""Several workers behind one port: started by spawn, restarted when they die, stopped together."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

import structlog
import uvloop
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from hiddenstate_server import logs
from hiddenstate_server.errors import StartError
from hiddenstate_server.metrics import metrics_server
from hiddenstate_server.settings import Settings

log = structlog.get_logger("hiddenstate_server")

_RESTART_SECONDS = 1.0


class _Report(NamedTuple):
    """What a worker says once: the line to print, or why it cannot start."""

    ready: bool
    message: str


def supervise(settings: Settings) -> None:
    """Runs the workers until SIGTERM or SIGINT.

    StartError if one cannot start; SystemExit(1) if one does not stop well.
    """
    with tempfile.TemporaryDirectory(prefix="hiddenstate-") as folder, _reserved(settings) as port:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
        with metrics_server(settings, registry):
            Supervisor(settings.model_copy(update={"port": port}), Path(folder)).run()


class Supervisor:
    """Starts, watches and stops the workers."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[int, SpawnProcess] = {}
        # A worker reports when it is ready, the one that replaces another too: its pipe must stay open.
        self._reports: dict[int, Connection] = {}
        self._stopping = False

    def run(self) -> None:
        """Returns when all workers have drained after a signal."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            for worker in range(self._settings.workers):
                self._start(worker)
            self._await_ready()
            while self._workers:
                self._watch()
        finally:
            for process in self._workers.values():
                process.kill()

    def _start(self, worker: int) -> None:
        reports, report_to = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=run_worker, args=(self._settings, worker, self._folder, report_to), name=f"worker-{worker}"
        )
        process.start()
        report_to.close()
        self._workers[worker] = process
        self._reports[worker] = reports

    def _await_ready(self) -> None:
        message = ""
        for connection in self._reports.values():
            try:
                report: _Report = connection.recv()
            except EOFError:
                if self._stopping:
                    return
                raise StartError("a worker died while starting; its log has the details") from None
            if not report.ready:
                raise StartError(report.message)
            message = report.message
        print(f"{message} ({self._settings.workers} workers)", flush=True)

    def _watch(self) -> None:
        """Waits for a worker to end; starts it again unless all are to stop."""
        wait([process.sentinel for process in self._workers.values()])
        for worker, process in list(self._workers.items()):
            if process.exitcode is None:
                continue
            del self._workers[worker]
            mark_process_dead(process.pid, str(self._folder))  # type: ignore[no-untyped-call]
            if self._stopping:
                if process.exitcode not in (0, -signal.SIGTERM):
                    log.error("a worker failed to stop well", worker=worker, exit_code=process.exitcode)
                    sys.exit(1)
                continue
            log.error(
                "a worker died; what the store does not have is lost, starting it again",
                worker=worker,
                exit_code=process.exitcode,
            )
            time.sleep(_RESTART_SECONDS)
            if not self._stopping:
                self._start(worker)

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True
        for process in self._workers.values():
            if process.is_alive():
                process.terminate()


@contextmanager
def _reserved(settings: Settings) -> Iterator[int]:
    """Holds the port for the workers to share; StartError if another program has it."""
    host = settings.socket_host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Without SO_REUSEPORT first: with it, another server's port would be shared silently.
        with socket.create_server((host, settings.port), family=family) as probe:
            port: int = probe.getsockname()[1]
        holder = socket.socket(family)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        raise StartError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another --port or --host"
        ) from error
    with holder:
        yield port


def run_worker(settings: Settings, worker: int, folder: Path, report_to: Connection) -> None:
    """A worker process from start to end."""
    # Imported here so that the supervisor stays small: it needs no runtime.
    from hiddenstate_server.process.worker import serve_shared

    logs.configure(settings.log_format, settings.log_level)
    structlog.contextvars.bind_contextvars(worker=worker)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_shared(settings, worker, folder, lambda line: report_to.send(_Report(True, line))))
    except StartError as error:
        report_to.send(_Report(False, str(error)))
