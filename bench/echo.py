"""A bare grpc.aio server on uvloop that answers each message with prepared ones: what the transport alone costs.

`python -m bench.echo PORT REPLIES`, where REPLIES is a JSON file with a list of messages in base64.
"""

import base64
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import uvloop

from bench.load import SERVICE


async def serve(port: int, replies: list[bytes]) -> None:
    """Serves until killed; bytes in, bytes out, nothing parsed."""

    async def echo(requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        async for _ in requests:
            for reply in replies:
                await context.write(reply)

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Stream": grpc.stream_stream_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"localhost:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    messages = [base64.b64decode(message) for message in json.loads(Path(sys.argv[2]).read_text())]
    uvloop.run(serve(int(sys.argv[1]), messages))
