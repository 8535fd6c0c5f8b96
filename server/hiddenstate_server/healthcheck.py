"""`python -m hiddenstate_server.healthcheck [ADDRESS]` exits 0 when a server's health service says SERVING.

For the health checks of containers; Kubernetes asks the same service by its own `grpc` probe.
"""

import os
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS_TO_ANSWER = 4.0


def status(address: str) -> str:
    """The overall health of the server at `address` as the protocol names it, or why it gave no answer."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS_TO_ANSWER)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name


def main() -> None:
    """Prints the health and exits 0 only when the server serves."""
    default = f"localhost:{os.environ.get('HIDDENSTATE_PORT', '50051')}"
    found = status(sys.argv[1] if len(sys.argv) > 1 else default)
    print(found)
    sys.exit(found != "SERVING")


if __name__ == "__main__":
    main()
