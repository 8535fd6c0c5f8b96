"""The load generator's HTTP/2 against real gRPC servers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from bench.grpc_stream import GrpcStream, StreamEnded

PATH = "/test.Echo/Stream"


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of a real grpcio server that echoes messages, and ends its streams when told `end`."""

    async def echo(requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        async for request in requests:
            if request == b"end":
                return
            await context.write(request)

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Stream": grpc.stream_stream_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("localhost:0")
    await server.start()
    yield port
    await server.stop(None)


async def connected(port: int, path: str, received: Callable[[bytes], None]) -> GrpcStream:
    """A stream on a connection of its own."""
    _, stream = await asyncio.get_running_loop().create_connection(
        lambda: GrpcStream(path, received), "localhost", port
    )
    return stream


async def test_messages_of_every_size_come_back_whole_and_in_order(port: int) -> None:
    sent = [bytes([number]) * size for number, size in enumerate((0, 1, 16_383, 16_384, 70_000, 1_000_000, 3))]
    came: asyncio.Queue[bytes] = asyncio.Queue()
    stream = await connected(port, PATH, came.put_nowait)
    for message in sent:
        stream.send(message)
    assert [await came.get() for _ in sent] == sent
    stream.close()


async def test_windows_are_renewed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.grpc_stream.OUR_WINDOW", 1 << 17)
    came: asyncio.Queue[bytes] = asyncio.Queue()
    stream = await connected(port, PATH, came.put_nowait)
    for _ in range(10):
        stream.send(bytes(50_000))
        assert len(await came.get()) == 50_000
    stream.close()


@pytest.mark.parametrize(("path", "message"), [(PATH, b"end"), ("/test.Echo/Nothing", b"")])
async def test_a_stream_that_the_server_ends_is_an_error(port: int, path: str, message: bytes) -> None:
    stream = await connected(port, path, lambda _: None)
    stream.send(message)
    with pytest.raises(StreamEnded):
        await stream.ended
    stream.close()
