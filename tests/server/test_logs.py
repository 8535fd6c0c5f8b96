"""One line when a session ends, none for an observation."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog
from structlog.testing import capture_logs
from tests.server.doubles import Clock, make_host
from tests.server.wire import close, opening, words

from hiddenstate_server import logs


def test_a_line_a_session_end() -> None:
    host, *_ = make_host(clock := Clock(), idle_timeout=10.0)
    stream = host.connect()
    with capture_logs() as lines:
        host.receive(stream, opening([0, 1], "words", ids=["closed", "expired"]))
        host.receive(stream, words([0, 1, 1], [3, 4, 5]))
        while host.ready:
            host.tick()
        assert lines == []
        host.receive(stream, close([0]))
        host.tick()
        clock.now += 10
        host.expire()
    told = [(line["event"], line["session"], line["reason"], line["steps"], line["model"]) for line in lines]
    assert told == [
        ("session ended", "closed", "closed", 1, "words"),
        ("session ended", "expired", "expired", 2, "words"),
    ]


@pytest.fixture
def unconfigured() -> Iterator[None]:
    """Puts logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.usefixtures("unconfigured")
def test_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", written := io.StringIO())
    logs.configure("json", "info")
    structlog.get_logger("test").info("from structlog", number=1)
    logging.getLogger("library").warning("from a library")
    structlog.get_logger("test").debug("not shown")
    first, second = map(json.loads, written.getvalue().splitlines())
    assert (first["event"], first["number"], first["level"]) == ("from structlog", 1, "info")
    assert (second["event"], second["level"]) == ("from a library", "warning")
