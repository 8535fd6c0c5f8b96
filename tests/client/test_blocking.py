"""The blocking client: the same methods from any number of threads."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hiddenstate import Client, ClientClosed, InvalidInput, ModelNotFound, SessionClosed, ValuePrediction


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A fake server in a process of its own: gRPC's asyncio wants one event loop a process."""
    command = [sys.executable, "-m", "tests.client.fake"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"localhost:{process.stdout.readline().strip()}"
        process.terminate()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout=20.0) as client:
        yield client


def test_words(client: Client) -> None:
    with client.session("words") as session:
        assert session.step == 0
        assert session.observe("the").top[0] == ("cat", 0.75)
        assert session.peek().step == session.step == 1
        assert len(session.observe_many("cat sat on")) == 3
        session.heartbeat()
        assert session.id
        assert session.idle_timeout == 600
        assert session.model.task == "next-word"
    with pytest.raises(SessionClosed):
        session.observe("the")
    session.close()


def test_what_is_served(client: Client) -> None:
    assert len(client.models()) == 3
    assert client.model("values").version == "3"
    with client.session("values", id="listed"):
        assert "listed" in [session.id for session in client.sessions()]
    with pytest.raises(ModelNotFound):
        client.model("other")


def test_a_fleet(client: Client) -> None:
    with client.fleet("values") as fleet:
        assert fleet.observe([1, 2], [1.0, 2.0]).steps.tolist() == [1, 1]
        predictions = fleet.observe(np.array([2, 1]), np.array([1.0, 2.0]))
        assert predictions.mean.tolist() == [3.0, 3.0]
        fleet.heartbeat()
        fleet.close([1])
        assert len(fleet) == 1
        assert 2 in fleet


def test_many_threads_share_a_client(client: Client) -> None:
    def work(number: int) -> float:
        with client.session("values") as session:
            for _ in range(20):
                prediction = session.observe(number)
            assert isinstance(prediction, ValuePrediction)
            return float(prediction.mean)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(24))) == [20.0 * number for number in range(24)]


def test_threads_share_a_session(client: Client) -> None:
    with client.session("values") as session, ThreadPoolExecutor(8) as pool:
        steps = list(pool.map(lambda x: session.observe(float(x)).step, range(200)))
    assert sorted(steps) == list(range(1, 201))


def test_a_closed_client(address: str) -> None:
    client = Client(address)
    session = client.session("values")
    client.close()
    client.close()
    with pytest.raises(ClientClosed):
        client.models()
    with pytest.raises(ClientClosed):
        session.observe(1.0)
    with pytest.raises(InvalidInput):
        Client(address, timeout=0)


def test_a_forgotten_client_lets_the_interpreter_end(address: str) -> None:
    program = f"""
from hiddenstate import Client
client = Client({address!r})
session = client.session("values")
print(session.observe(1.0).mean)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("1.0\n", "", 0)
