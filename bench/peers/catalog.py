"""Who is compared: hiddenstate in two ways, and its peers."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
BUNDLE = HERE.parents[1] / "models" / "hiddenstate_models" / "bundles" / "next-word" / "1"
"""The model all of them serve."""


class Contestant(NamedTuple):
    """A server and a way to use it."""

    name: str
    title: str
    client: str
    """Module of its client."""
    command: Callable[[int, Path], list[str]]
    """What starts its server on a port, with an empty folder for what it writes."""
    python: Path = Path(sys.executable)
    """The interpreter that its client needs."""
    general: bool = False
    """Whether it is a server for any kind of model."""

    @property
    def installed(self) -> bool:
        """Whether it can be run."""
        return not self.general or (self.python.parents[1] / "installed").exists()

    @property
    def installer(self) -> str:
        """The command that installs it."""
        return f"bench/peers/{self.name}/install.sh"


def _hiddenstate(port: int, scratch: Path) -> list[str]:
    program = Path(sys.executable).with_name("hiddenstate-server")
    flags = ["--port", port, "--metrics-port", 0, "--log-level", "warning", "--models", BUNDLE.parents[1]]
    return list(map(str, [program, *flags, "--state-folder", scratch / "state"]))


def _module(python: Path, module: str, *flags: str) -> Callable[[int, Path], list[str]]:
    return lambda port, scratch: list(map(str, [python, "-m", module, port, BUNDLE, scratch, *flags]))


def _afternoon(name: str, title: str, *flags: str) -> Contestant:
    command = _module(Path(sys.executable), "bench.peers.afternoon.server", *flags)
    return Contestant(name, title, "bench.peers.afternoon.client", command)


def _general(name: str, title: str, client: str) -> Contestant:
    python = HERE / ".venvs" / name / "bin" / "python"
    return Contestant(name, title, client, _module(python, f"bench.peers.{name}.server"), python, general=True)


STREAMS = Contestant(
    "streams", "hiddenstate, one observation a message", "bench.peers.hiddenstate_streams.client", _hiddenstate
)
SDK = Contestant("sdk", "hiddenstate, one AsyncClient", "bench.peers.hiddenstate_sdk.client", _hiddenstate)
AFTERNOON = _afternoon("afternoon", "afternoon server: grpc.aio, torch")
BATCHED = _afternoon("afternoon-batched", "the same with a 2 ms batching timer", "--batch")
PEERS = (
    AFTERNOON,
    BATCHED,
    _general("triton", "Triton, sequence batcher", "bench.peers.triton.client"),
    _general("torchserve", "TorchServe, sequence batching", "bench.peers.torchserve.client"),
    _general("litserve", "LitServe", "bench.peers.http"),
    _general("bentoml", "BentoML", "bench.peers.bentoml.client"),
)
