"""The wheel: what is in it, that the plain install is the SDK alone, and that the image's install line serves."""

import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.deploy.programs import ROOT, Stage, serving

HEAVY = ("torch", "onnxruntime", "uvloop", "tokenizers")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end; its output is in the failure when it fails."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done


@pytest.fixture(scope="module")
def context(stages: dict[str, Stage], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with just the files that the Dockerfile copies into its build stage."""
    folder = tmp_path_factory.mktemp("context") / "src"
    folder.mkdir()
    for kind, value in stages["build"].instructions:
        if kind == "COPY":
            *sources, target = value.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, folder / target)
    return folder


@pytest.fixture(scope="module")
def wheel(context: Path) -> Path:
    """The wheel, built from that folder."""
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", ".", cwd=context)
    (wheel,) = (context / "dist").glob("hiddenstate-*.whl")
    return wheel


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where packages cannot be installed."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--retries", "1", "--timeout", "10", "typer"]
    if subprocess.run(pip, cwd=tmp_path_factory.mktemp("index"), capture_output=True).returncode:
        pytest.skip("the package index cannot be reached")


def environment(folder: Path) -> Path:
    """A fresh virtual environment; returns its bin folder."""
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    return folder / "venv/bin"


def importable(bin_folder: Path, *modules: str) -> set[str]:
    """Those of the modules that the environment has."""
    program = f"import importlib.util as u; print(*[m for m in {modules!r} if u.find_spec(m)])"
    return set(run(bin_folder / "python", "-c", program, cwd=bin_folder).stdout.split())


def test_the_wheel_has_four_packages_their_types_and_the_models(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packages = {"hiddenstate_proto", "hiddenstate_models", "hiddenstate_server", "hiddenstate"}
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == packages
    assert {f"{package}/py.typed" for package in packages} <= set(names)
    for model in ("next-word", "next-value"):
        assert f"hiddenstate_models/bundles/{model}/1/step.onnx" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_models_stay_small_enough_to_ship(wheel: Path) -> None:
    sizes = [info.file_size for info in zipfile.ZipFile(wheel).infolist() if "/bundles/" in info.filename]
    assert sum(sizes) < 15e6


@pytest.mark.usefixtures("index")
def test_the_plain_install_is_the_sdk_and_nothing_heavy(wheel: Path, tmp_path: Path) -> None:
    bin_folder = environment(tmp_path)
    run(bin_folder / "pip", "install", "-q", wheel, cwd=tmp_path)
    assert importable(bin_folder, *HEAVY) == set()
    run(bin_folder / "python", "-W", "error", "-c", "import hiddenstate; hiddenstate.Client", cwd=tmp_path)
    assert "watch" in run(bin_folder / "hiddenstate", "--help", cwd=tmp_path).stdout


@pytest.mark.usefixtures("index")
def test_the_install_line_of_the_image_serves_without_torch(
    context: Path, stages: dict[str, Stage], entry_point: list[str], tmp_path: Path
) -> None:
    (line,) = (value for kind, value in stages["build"].instructions if kind == "RUN" and value.startswith("pip "))
    bin_folder = environment(tmp_path)
    run("sh", "-c", f"{bin_folder}/{line}", cwd=context)
    assert importable(bin_folder, *HEAVY) == set(HEAVY) - {"torch"}
    weights = list((tmp_path / "venv").glob("lib/*/site-packages/hiddenstate_models/bundles/*/*/model.safetensors"))
    assert len(weights) == 2
    assert all(path.stat().st_mode & stat.S_IROTH for path in weights), "the image's user could not read them"
    with serving(entry_point, stages["cpu"].env, bin_folder, tmp_path) as server:
        listing = run(
            bin_folder / "hiddenstate", "models", "--json", "--server", f"localhost:{server.port}", cwd=tmp_path
        )
    assert "next-word" in listing.stdout
    assert "next-value" in listing.stdout
