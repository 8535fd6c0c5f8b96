"""Models small enough that processes and networks, not arithmetic, take the time."""

from pathlib import Path

import pytest
from tests.torture.reference import LoneModel, lone_models

from hiddenstate_models.export import random_bundle


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with one of each task."""
    folder = tmp_path_factory.mktemp("models")
    random_bundle(folder, "next-word", seed=1)
    random_bundle(folder, "next-value", seed=2)
    return folder


@pytest.fixture(scope="session")
def lone(models: Path) -> dict[str, LoneModel]:
    """The same models, without a server."""
    return lone_models(models)
