"""No test writes to the home of whoever runs it: every server gets a state folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

_VARIABLE = "HIDDENSTATE_STATE_FOLDER"


@pytest.fixture(scope="session", autouse=True)
def state_folder_of_shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For servers that several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_VARIABLE, str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For servers that a test starts."""
    folder = tmp_path / "state"
    monkeypatch.setenv(_VARIABLE, str(folder))
    return folder
