"""One serving process: loads the models, runs the engine and the gRPC server in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server import __version__, errors
from hiddenstate_server.calls.interceptor import CallInterceptor
from hiddenstate_server.calls.peers import Peers, lookup_handler, socket_address
from hiddenstate_server.calls.service import HiddenStateService, register
from hiddenstate_server.calls.tenants import Tenants
from hiddenstate_server.calls.tls import server_credentials
from hiddenstate_server.metrics import Metrics, metrics_server
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.sessions.integrity import Inspection
from hiddenstate_server.sessions.keeper import Keeper, new_ledger
from hiddenstate_server.sessions.pace import Pace
from hiddenstate_server.sessions.rewarming import Moving
from hiddenstate_server.sessions.snapshots import snapshot_key
from hiddenstate_server.settings import Settings
from hiddenstate_server.tokens import read_tokens
from hiddenstate_server.versions.reloading import Reloader
from hiddenstate_server.versions.repository import LoadedModel, load_models

log = structlog.get_logger("hiddenstate_server")
SERVICE = pb.DESCRIPTOR.services_by_name["HiddenStateService"].full_name
_LEAST_SAVE_SECONDS = 5.0
STORE_SERVICE = "hiddenstate.store"
"""The health service's name for the state store."""
_TURNS_WITH_RUNS = 4
_HOUSEKEEPING_SECONDS = 0.25
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
_OBJECTS_BETWEEN_COLLECTIONS = 50_000
_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class Worker:
    """A host behind a gRPC server. `start`, then `run` until `drain` has finished."""

    def __init__(self, settings: Settings, models: Sequence[LoadedModel], peers: Peers | None = None) -> None:
        url = settings.store_url
        ledger = None if url is None else new_ledger(settings.durability == "every-step", settings.max_sessions)
        key = snapshot_key(settings.snapshot_key_file, settings.state_folder)
        self.host = Host(settings.limits, Metrics(__version__), ledger=ledger, snapshot_key=key)
        pace = Pace(settings.flush_interval, settings.max_flush_interval, settings.store_share)
        self._keeper = None if url is None else Keeper(self.host, url, pace)
        for model in models:
            self.host.add_model(*model)
        self._settings = settings
        self._peers = peers or Peers()
        tokens = None if settings.tokens is None else read_tokens(settings.tokens)
        self._tenants = Tenants(tokens, settings.admin_tenant)
        self._credentials = server_credentials(settings)
        self._work: asyncio.Future[None] | None = None
        self.host.generating.wake = self._wake
        self._inspection = Inspection(self.host)
        self._moving = Moving(self.host, settings.on_new_version, settings.retire)
        self._health = health.aio.HealthServicer()
        self._health_names: set[str] = set()
        self._reloader = Reloader(settings, self.host, self._report_health)
        self._drained = asyncio.Event()
        self.unsaved = 0
        """Sessions that were not saved when the worker had drained."""

    async def start(self, addresses: Sequence[str], *, share_port: bool = False) -> int:
        """Listens on the addresses; returns the port of the first. StartError if one is taken."""
        if self._keeper is not None:
            _make_folder(self._settings)
            await self._keeper.start()
            self._keeper.report = self._report_store
            await self._report_store(True)
        self._server = grpc.aio.server(
            interceptors=[CallInterceptor(self._tenants)],
            options=[
                *_KEEPALIVE,
                ("grpc.so_reuseport", int(share_port)),
                ("grpc.max_receive_message_length", self._settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        service = HiddenStateService(self.host, self._keeper, self._peers, self._tenants, self._reloader, self._wake)
        register(service, self._server)
        self._server.add_generic_rpc_handlers((lookup_handler(self.host, self._keeper),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), self._server
        )
        ports = [self._listen(address) for address in addresses]
        await self._report_health()
        if self._keeper is not None:
            await self._report_store(True)
        await self._server.start()
        gc.collect()
        gc.freeze()
        # What a message allocates dies with its last reference; a look for cycles every 700 objects, as is usual,
        # costs a twentieth of the busy thread.
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
        return ports[0]

    def _listen(self, address: str) -> int:
        try:
            # What peers say to each other stays on this machine.
            if self._credentials is None or address.startswith("unix:"):
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise errors.StartError(
                f"cannot listen on {address}: the address is in use or not this machine's; "
                "choose another --port or --host"
            ) from error

    def drain_on_signals(self) -> None:
        """From now on SIGTERM and SIGINT drain, where they would have ended the process on the spot."""
        loop, draining = asyncio.get_running_loop(), set[asyncio.Task[None]]()

        def drain() -> None:
            if not draining:
                draining.add(asyncio.create_task(self.drain()))

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, drain)

    async def run(self) -> None:
        """Serves until drained."""
        tasks = [asyncio.create_task(self._run_engine()), asyncio.create_task(self._keep_house())]
        if self._settings.reload_interval:
            tasks.append(asyncio.create_task(self._reloader.watch()))
        if self._keeper is not None:
            tasks.append(asyncio.create_task(self._keeper.run()))
        drained = asyncio.create_task(self._drained.wait())
        try:
            done, _ = await asyncio.wait([*tasks, drained], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*tasks, drained):
                task.cancel()
            await self._server.stop(0)
            await self._peers.close()
            if self._keeper is not None:
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._keeper.close()
            self.host.flush_metrics()

    async def drain(self) -> None:
        """Refuses new sessions, answers what is under way, then lets `run` return."""
        self.host.draining = True
        log.info("draining", streams=len(self.host.streams), seconds=self._settings.drain_timeout)
        await self._report_health()
        self.host.generating.drain(self.host.streams.values())
        for stream in self.host.streams.values():
            stream.end(errors.Draining("the server is going away; connect to another one and resume there"))
        self.host.watching.end_all(errors.Draining("the server is going away; watch the session on another one"))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.host.deserted(), self._settings.drain_timeout)
        if self._keeper is not None:
            self.host.abandon()
            self.unsaved = await self._keeper.release(max(_LEAST_SAVE_SECONDS, self._settings.drain_timeout))
        self._drained.set()

    def _wake(self) -> None:
        if self._work is None or self._work.done():
            return
        if len(self.host.streams) == 1:
            # Nobody else can join the batch, so nothing is gained by a turn of the loop.
            self.host.tick()
        if self.host.ready:
            self._work.set_result(None)

    async def _run_engine(self) -> None:
        host, loop = self.host, asyncio.get_running_loop()
        while True:
            if not host.ready:
                self._work = loop.create_future()
                await self._work
                self._work = None
                # What other streams have already sent is read in this turn of the loop and joins the batch.
                await asyncio.sleep(0)
            host.tick()
            # Lets the loop read what has come in meanwhile: it is the next batch. A message takes several turns in and
            # out, and where a run comes between, none of them should last as long as a run.
            for _ in range(_TURNS_WITH_RUNS if host.running else 1):
                await asyncio.sleep(0)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            self.host.expire()
            self._moving.go_on()
            self._wake()
            self.host.unload_retired()
            if not self.host.ready:
                self._inspection.go_on()
            self.host.flush_metrics()

    async def _report_store(self, works: bool) -> None:
        await self._health.set(STORE_SERVICE, _SERVING if works else _NOT_SERVING)

    async def _report_health(self) -> None:
        """The server, the service, and each model by its name: SERVING if new sessions can be opened."""
        offered = {model.info.name for model in self.host.models if not model.retired}
        self._health_names |= offered
        serving = set() if self.host.draining else {"", SERVICE, *offered}
        for name in ("", SERVICE, *self._health_names):
            status = _SERVING if name in serving else _NOT_SERVING
            await self._health.set(name, status)


async def serve(settings: Settings) -> None:
    """Serves in this process alone until SIGTERM or SIGINT, printing one line when ready."""
    worker = Worker(settings, load_models(settings))
    port = await worker.start([f"{settings.host}:{settings.port}"])
    worker.drain_on_signals()  # before anybody is told that it is ready
    with metrics_server(settings, worker.host.metrics.registry):
        print(ready_line(settings.host, port, worker.host), flush=True)
        await worker.run()
    _exit(worker)


def _make_folder(settings: Settings) -> None:
    """Makes the state folder if sessions are kept there."""
    if settings.store:
        return
    try:
        settings.state_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise errors.StartError(
            f"the state folder {settings.state_folder} cannot be made: {error.strerror}; choose another --state-folder"
        ) from error


def _exit(worker: Worker) -> None:
    """Ends the process with 1 where something was not saved."""
    if worker.unsaved:
        sys.exit(1)


def ready_line(address: str, port: int, host: Host) -> str:
    """Where the server listens and what it serves."""
    names = ", ".join(f"{model.info} ({model.runtime.description})" for model in host.models)
    return f"hiddenstate-server {__version__} ready on {address}:{port}, serving {names}"


async def serve_shared(settings: Settings, worker: int, folder: Path, announce: Callable[[str], None]) -> None:
    """Serves as one of several workers: shares the port, and answers its peers on a Unix socket in `folder`."""
    own = socket_address(folder, worker)
    peers = Peers(socket_address(folder, peer) for peer in range(settings.workers) if peer != worker)
    server = Worker(settings, load_models(settings), peers)
    port = await server.start([f"{settings.host}:{settings.port}", own], share_port=True)
    server.drain_on_signals()
    announce(ready_line(settings.host, port, server.host))
    _stop_with_supervisor()
    await server.run()
    _exit(server)


def _stop_with_supervisor() -> None:
    """Treats the supervisor's death as SIGTERM: it cannot send one any more, and its port would stay taken."""
    supervisor, loop = multiprocessing.parent_process(), asyncio.get_running_loop()
    assert supervisor is not None, "workers are started by a supervisor"

    def died() -> None:
        loop.remove_reader(supervisor.sentinel)
        signal.raise_signal(signal.SIGTERM)

    loop.add_reader(supervisor.sentinel, died)
