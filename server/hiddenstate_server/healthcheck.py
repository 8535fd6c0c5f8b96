"""`python -m hiddenstate_server.healthcheck [ADDRESS]` exits 0 when a server's health service says SERVING.

For the health checks of containers; Kubernetes asks the same service by its own `grpc` probe, which knows no TLS.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS_TO_ANSWER = 4.0


def status(address: str, credentials: grpc.ChannelCredentials | None = None, name: str | None = None) -> str:
    """The overall health of the server at `address` as the protocol names it, or why it gave no answer.

    `name` is the one its certificate must have, where it is not the address's.
    """
    with _channel(address, credentials, name) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS_TO_ANSWER)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    found: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return found


def _channel(address: str, credentials: grpc.ChannelCredentials | None, name: str | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(address)
    options = [] if name is None else [("grpc.ssl_target_name_override", name)]
    return grpc.secure_channel(address, credentials, options)


def main() -> None:
    """Prints the health and exits 0 only when the server serves."""
    arguments = _arguments()
    found = status(arguments.address, _credentials(arguments), arguments.tls_name)
    print(found)
    sys.exit(found != "SERVING")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hiddenstate_server.healthcheck", description="Exits 0 when a server says that it serves."
    )
    default = f"localhost:{os.environ.get('HIDDENSTATE_PORT', '50051')}"
    parser.add_argument("address", nargs="?", default=default, help=f"HOST:PORT; {default} unless given.")
    parser.add_argument("--tls-ca", type=Path, help="PEM file of who signed the server's certificate; asks by TLS.")
    parser.add_argument("--tls-name", help="The name in the server's certificate, where it is not the address's.")
    parser.add_argument("--tls-certificate", type=Path, help="PEM file of a client's certificate, if one is asked for.")
    parser.add_argument("--tls-key", type=Path, help="PEM file of its key.")
    return parser.parse_args()


def _credentials(arguments: argparse.Namespace) -> grpc.ChannelCredentials | None:
    if arguments.tls_ca is None:
        return None
    files = (arguments.tls_ca, arguments.tls_key, arguments.tls_certificate)
    return grpc.ssl_channel_credentials(*(None if path is None else path.read_bytes() for path in files))


if __name__ == "__main__":
    main()
