"""TLS on the public port: who is let in, and what is said of files that do not fit."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import pytest
from tests.server.certificates import Authority, Files, credentials
from tests.server.conftest import Serve, Serving

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_proto import hiddenstate_pb2_grpc as pb_grpc
from hiddenstate_server.calls.tls import server_credentials
from hiddenstate_server.errors import StartError
from hiddenstate_server.settings import Settings, load


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


async def models(address: str, secret: grpc.ChannelCredentials | None) -> int | grpc.StatusCode:
    """How many models the server lists, or how the call failed."""
    channel = grpc.aio.insecure_channel(address) if secret is None else grpc.aio.secure_channel(address, secret)
    stub: pb_grpc.HiddenStateServiceAsyncStub = pb_grpc.HiddenStateServiceStub(channel)
    async with channel:
        try:
            return len((await stub.ListModels(pb.ListModelsRequest(), timeout=10)).models)
        except grpc.RpcError as error:
            return error.code()


async def serving(serve: Serve, files: Files, **settings: object) -> Serving:
    return await serve(tls_certificate=files.certificate, tls_key=files.key, **settings)


async def test_only_tls_is_spoken(serve: Serve, authority: Authority) -> None:
    server = await serving(serve, authority.sign("server"))
    assert await models(server.address, credentials(authority)) == 6
    assert await models(server.address, None) == grpc.StatusCode.UNAVAILABLE


async def test_a_client_checks_who_signed(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    server = await serving(serve, authority.sign("server"))
    other = Authority(tmp_path, "other")
    assert await models(server.address, credentials(other)) == grpc.StatusCode.UNAVAILABLE


async def test_clients_show_certificates_where_asked(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    server = await serving(serve, authority.sign("server"), tls_client_ca=authority.files.certificate)
    assert await models(server.address, credentials(authority, authority.sign("client"))) == 6
    assert await models(server.address, credentials(authority)) == grpc.StatusCode.UNAVAILABLE
    assert await models(server.address, credentials(authority, other.sign("stranger"))) == grpc.StatusCode.UNAVAILABLE


async def test_health_is_asked_by_tls(serve: Serve, authority: Authority) -> None:
    files = authority.sign("server")
    server = await serving(serve, files, tls_client_ca=authority.files.certificate)
    client = authority.sign("client")

    async def asked(*flags: object) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hiddenstate_server.healthcheck", server.address, *map(str, flags),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, _ = await process.communicate()
        return process.returncode, said.decode()

    trusted = ("--tls-ca", authority.files.certificate)
    shown = ("--tls-certificate", client.certificate, "--tls-key", client.key)
    assert await asked(*trusted, *shown) == (0, "SERVING\n")
    assert (await asked(*trusted))[0] == 1
    assert (await asked(*trusted, *shown, "--tls-name", "another.example"))[0] == 1


@pytest.mark.parametrize("wrong", ["missing", "foreign key", "no certificate"])
def test_files_that_do_not_fit_stop_the_start(authority: Authority, tmp_path: Path, wrong: str) -> None:
    files, other = authority.sign("server"), authority.sign("other")
    certificate, key = {
        "missing": (tmp_path / "nowhere.pem", files.key),
        "foreign key": (files.certificate, other.key),
        "no certificate": (files.key, files.key),
    }[wrong]
    with pytest.raises(StartError, match=str(key)) as raised:
        server_credentials(Settings(tls_certificate=certificate, tls_key=key))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("flags", [["--tls-certificate", "a"], ["--tls-key", "b"], ["--tls-client-ca", "c"]])
def test_halves_are_mistakes(flags: list[str]) -> None:
    with pytest.raises(StartError, match="tls_"):
        load(flags)
