"""What holds for every test, wherever it runs: no home is written to, and Ctrl-C is heard."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

_VARIABLE = "HIDDENSTATE_STATE_FOLDER"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it runs in the background deaf to it, and so would be the commands that tests send it to.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def state_folder_of_shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A state folder for servers that several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_VARIABLE, str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder for servers that a test starts."""
    folder = tmp_path / "state"
    monkeypatch.setenv(_VARIABLE, str(folder))
    return folder
