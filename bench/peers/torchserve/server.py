"""TorchServe with its sequence batching: `python -m bench.peers.torchserve.server PORT BUNDLE SCRATCH`.

Makes a model archive in the folder SCRATCH and becomes the java process that `torchserve` would leave behind.
"""

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def archive(store: Path) -> None:
    """The model archive, as a folder."""
    store.mkdir()
    archiver = Path(sys.executable).with_name("torch-model-archiver")
    model = ["--model-name", "next-word", "--version", "1.0"]
    files = ["--handler", str(HERE / "handler.py"), "--config-file", str(HERE / "model-config.yaml")]
    where = ["--archive-format", "no-archive", "--export-path", str(store)]
    subprocess.run([str(archiver), *model, *files, *where], check=True)


def configuration(port: int) -> str:
    """Where it listens: gRPC on `port`, the rest somewhere."""
    others = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    inference, management, metrics, grpc_management = (other.getsockname()[1] for other in others)
    for other in others:
        other.close()
    return f"""inference_address=http://127.0.0.1:{inference}
management_address=http://127.0.0.1:{management}
metrics_address=http://127.0.0.1:{metrics}
grpc_inference_port={port}
grpc_management_port={grpc_management}
disable_system_metrics=true
"""


if __name__ == "__main__":
    scratch = Path(sys.argv[3])
    archive(scratch / "models")
    (scratch / "config.properties").write_text(configuration(int(sys.argv[1])))
    package = find_spec("ts")
    assert package
    assert package.origin
    frontend = Path(package.origin).parent / "frontend"
    os.chdir(scratch)
    server = ["org.pytorch.serve.ModelServer", "--python", sys.executable, "-f", "config.properties"]
    models = ["-ncs", "--disable-token-auth", "-s", "models", "-m", "next-word=next-word"]
    home = f"-Dmodel_server_home={frontend.parents[1]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NEXT_WORD_BUNDLE": str(sys.argv[2])}
    os.execvpe("java", ["java", home, "-cp", f"{frontend}/*", *server, *models], environment)
