"""Triton as nvidia-pytriton ships it, with its sequence batcher and Python backend.

`python -m bench.peers.triton.server PORT BUNDLE SCRATCH` makes a model repository in the folder SCRATCH and becomes
tritonserver. pytriton's own API knows no sequence batching, so only its binaries are used, laid out as it would.
"""

import os
import shutil
import sys
from pathlib import Path

from pytriton.utils.distribution import get_libs_path, get_root_module_path, get_stub_path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def lay_out(bundle: Path, scratch: Path) -> tuple[Path, Path]:
    """Folders of the server's binaries and of its models, made in `scratch`."""
    server, models = scratch / "tritonserver", scratch / "models"
    shutil.copytree(get_root_module_path() / "tritonserver", server)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(get_stub_path(version), server / "backends" / "python" / "triton_python_backend_stub")
    model = models / "next-word"
    (model / "1").mkdir(parents=True)
    shutil.copy(HERE / "model.py", model / "1")
    config = (HERE / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(config.replace("BUNDLE", str(bundle)))
    return server, models


if __name__ == "__main__":
    server, models = lay_out(Path(sys.argv[2]).resolve(), Path(sys.argv[3]))
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(get_libs_path()),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # The stub is a Python of its own, which has to be told where packages are.
        "PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]),
    }
    flags = [
        f"--model-repository={models}",
        f"--backend-directory={server / 'backends'}",
        f"--grpc-port={sys.argv[1]}",
        "--grpc-address=127.0.0.1",
        "--allow-http=false",
        "--allow-metrics=false",
        "--log-info=false",
    ]
    program = server / "bin" / "tritonserver"
    os.execve(program, [str(program), *flags], environment)
