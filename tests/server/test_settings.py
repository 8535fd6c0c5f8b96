"""File < environment < flags, validated once, and mistakes told in one sentence."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from hiddenstate_server.errors import StartError
from hiddenstate_server.settings import Settings, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text('port = 1000\nidle_timeout = "90s"\nmax_sessions = 7\n')
    return path


def test_defaults() -> None:
    settings = load([])
    assert (settings.port, settings.metrics_port, settings.workers) == (50051, 9090, 1)
    assert settings.limits.max_sessions == 100_000


def test_each_source_overrides_the_one_before(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDENSTATE_PORT", "2000")
    monkeypatch.setenv("HIDDENSTATE_MAX_SESSIONS", "8")
    settings = load(["--config", str(file), "--max-sessions", "9"])
    assert settings.idle_timeout == 90.0
    assert settings.port == 2000
    assert settings.max_sessions == 9


def test_the_file_can_be_named_by_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDENSTATE_CONFIG", str(file))
    assert load([]).port == 1000


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), ("1d", 86400.0), ("7", 7.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert load(["--idle-timeout", text]).idle_timeout == seconds


def test_sizes() -> None:
    assert load(["--max-message-bytes", "8MiB"]).max_message_bytes == 8 * 2**20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "port"),
        (["--idle-timeout", "soon"], "10m"),
        (["--idle-timeout", "48h"], "max_idle_timeout"),
        (["--workers", "0"], "workers"),
        (["--config", "nowhere.toml"], "does not exist"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(StartError, match=message) as raised:
        load(arguments)
    assert "\n" not in str(raised.value)


def test_unknown_names_in_the_file_are_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("prot = 1\n")
    with pytest.raises(StartError, match="prot"):
        load(["--config", str(path)])


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1
