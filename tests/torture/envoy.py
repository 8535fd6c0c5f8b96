"""The real Envoy with deploy/envoy.yaml, in front of replicas on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from tests.torture.processes import Program, free_port, http_get

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "deploy/envoy.yaml"
ENVOY = str(Path(sys.executable).with_name("envoy"))


class Envoy(Program):
    """Forwards to these ports of this machine as deploy/envoy.yaml says."""

    def __init__(self, folder: Path, replicas: list[int]) -> None:
        self.port = free_port()
        configuration = yaml.safe_load(CONFIGURATION.read_text())
        resources = configuration["static_resources"]
        (listener,), (cluster,) = resources["listeners"], resources["clusters"]
        listener["address"] = _address(self.port)
        self._admin_port = free_port()
        configuration["admin"]["address"] = _address(self._admin_port)
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        endpoints["lb_endpoints"] = [{"endpoint": {"address": _address(port)}} for port in replicas]
        path = folder / "envoy.yaml"
        path.write_text(yaml.safe_dump(configuration))
        command = [ENVOY, "-c", str(path), "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "info"]
        super().__init__(command, folder / "envoy.log", "starting main dispatch loop")

    @property
    def address(self) -> str:
        """For clients."""
        return f"127.0.0.1:{self.port}"

    async def healthy(self) -> int:
        """How many replicas it sends streams to."""
        clusters = await http_get(self._admin_port, "/clusters")
        return clusters.count("::health_flags::healthy")


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
