"""The afternoon servers beside hiddenstate, for a moment; the other peers where they are installed."""

import asyncio
import math
from pathlib import Path

import pytest
from bench.peers import catalog, comparison, report
from bench.peers.catalog import AFTERNOON, BATCHED, PEERS, SDK, STREAMS, Contestant
from bench.peers.comparison import Comparison, Outcome, check
from bench.peers.http import HttpError, HttpSession
from bench.peers.load import Measured
from bench.peers.session import Prediction
from bench.processes import BenchError
from tests.bench.test_bench import number, tables

RIGHT = Prediction(4.0, (7, 3, 9), (0.5, 0.2, 0.1))


@pytest.fixture(scope="module")
def run() -> Comparison:
    """A comparison whose loads last a moment."""
    return Comparison(0.2, lambda _: None)


@pytest.mark.parametrize("contestant", [SDK, *PEERS], ids=lambda one: one.name)
def test_everybody_answers_as_hiddenstate_does(run: Comparison, contestant: Contestant) -> None:
    if not contestant.installed:
        pytest.skip(f"not installed: {contestant.installer}")
    with comparison.server(contestant) as one:
        answers = run.answers(contestant, one)
    assert len(answers) == comparison.COMPARED_SESSIONS
    check(answers, run.expected)


def test_the_afternoon_server_is_timed_and_weighed(run: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "SESSIONS", (1, 5))
    monkeypatch.setattr(comparison, "SESSIONS_IN_MEMORY", 20)
    outcome = run.measured(AFTERNOON)
    assert outcome.failures == []
    assert list(outcome.loads) == [1, 5]
    for measured in outcome.loads.values():
        assert measured.observations > 0
        assert 0 < measured.latency_ms["p50"] <= measured.latency_ms["p99"]
        assert measured.server_cpu > 0
    assert outcome.resident
    assert outcome.resident > 50e6
    assert outcome.session_bytes is not None


def test_who_answers_otherwise_is_not_timed(run: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "expected", [[one._replace(surprise=one.surprise + 0.01) for one in run.expected[0]]] * 3)
    outcome = run.measured(AFTERNOON)
    assert outcome.loads == {}
    assert outcome.session_bytes is None
    (failure,) = outcome.failures
    assert failure.startswith("its answers: it answers ")


def test_a_server_that_does_not_start_is_told_of(run: Comparison) -> None:
    broken = STREAMS._replace(command=lambda port, scratch: [*STREAMS.command(port, scratch), "--nonsense"])
    (failure,) = run.measured(broken).failures
    assert "did not start" in failure


def test_predictions_agree_but_for_words_of_equal_probability() -> None:
    check([[RIGHT._replace(surprise=4.04)]], [[RIGHT]])
    check([[Prediction(4.0, (7, 3, 8), (0.5, 0.2, 0.1))]], [[RIGHT]])


@pytest.mark.parametrize(
    "wrong",
    [
        RIGHT._replace(surprise=4.06),
        RIGHT._replace(surprise=math.nan),
        RIGHT._replace(top_probabilities=(0.5, 0.2, 0.16)),
        RIGHT._replace(top_tokens=(7, 8, 9)),
        Prediction(4.0, (7, 3), (0.5, 0.2)),
    ],
)
def test_wrong_predictions_are_found(wrong: Prediction) -> None:
    with pytest.raises(BenchError, match="instead of"):
        check([[wrong]], [[RIGHT]])


async def test_a_refusal_over_http_is_an_error() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 5\r\n\r\nlater")
        writer.close()

    async with await asyncio.start_server(refuse, "localhost", 0) as server:
        reader, writer = await asyncio.open_connection("localhost", server.sockets[0].getsockname()[1])
        with pytest.raises(HttpError, match="503 Busy: later"):
            await HttpSession(reader, writer).observe(1)
        writer.close()


def measured(rate: int) -> Measured:
    """A load of a second."""
    return Measured(rate, 1.0, {"p50": 1.0, "p99": 2.0}, server_cpu=0.5, generator_cpu=0.1)


def test_the_page_has_ratios_and_what_failed() -> None:
    general = [one for one in PEERS if one.general]
    rates = {STREAMS: 6000, SDK: 9000, BATCHED: 2000, general[0]: 500}
    outcomes = [Outcome(one, dict.fromkeys((1, 16, 64), measured(rate)), 4e3, 2**20) for one, rate in rates.items()]
    outcomes.append(Outcome(general[1], {1: measured(900)}, failures=["16 sessions: it fell over"]))
    page = report.page(outcomes, [general[2]], 1.0)
    found = tables(page)
    assert [(row["measured"], row["met"]) for row in found["Against the targets"]] == [
        ("18.0", "yes"),
        ("12.0", "yes"),
        ("4.5", "yes"),
        ("3.0", "yes"),
    ]
    rows = {(row["server"], row["sessions"]): row for row in found["Throughput, latency and CPU"]}
    assert len(rows) == 5 * 3
    assert rows[general[0].title, "64"]["streams / it"] == "12.0"
    assert rows[general[1].title, "16"]["observations/s"] == "-"
    assert number(rows[SDK.title, "1"]["CPU us an observation"]) == 56
    assert "it fell over" in page
    assert general[2].installer in page


def test_every_peer_has_an_installer() -> None:
    root = Path(catalog.__file__).parents[2]
    for one in PEERS:
        if one.general:
            assert (root / one.installer).stat().st_mode & 0o100, one.installer
