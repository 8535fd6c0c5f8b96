"""Forecasts over the wire: several steps ahead after every value, kept, forked, taken back and run free."""

from __future__ import annotations

import numpy as np
from tests.server.conftest import Serve
from tests.server.test_generate import Client
from tests.server.wire import fork, generate, opening, peek, rewind, values

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.versions.repository import LoadedModel

HORIZON, TARGETS = 6, 2


def outlook(loaded: list[LoadedModel]) -> tuple[LoadedModel, Client]:
    """The forecasting model, and a client of a host of it."""
    (model,) = (model for model in loaded if model.info.task == "forecasting")
    host = Host(Limits(max_sessions=9), Metrics("test"))
    host.add_model(*model)
    return model, Client(host)


def series(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(20.0, 3.0, (count, 2))


def test_every_answer_is_what_the_runtime_forecasts(loaded: list[LoadedModel]) -> None:
    model, client = outlook(loaded)
    client.send(opening([0], "outlook"), peek([0]))
    assert np.isnan(client.run().peeked[0].columns["locations"]).all()
    _, states = model.runtime.initial()
    for row in series(8):
        outputs, states = model.runtime.step(row[None], states)
        client.send(values([0], [row]))
        answer = client.run().observed[-1].columns
        for name, column in outputs._asdict().items():
            np.testing.assert_allclose(answer[name], column[0].reshape(-1), rtol=1e-5)
        assert answer["locations"].shape == (HORIZON * TARGETS,)


def test_forks_and_rewinds_are_where_the_session_was(loaded: list[LoadedModel]) -> None:
    _, client = outlook(loaded)
    client.send(opening([0], "outlook"), *(values([0], [row]) for row in series(12)))
    answers = [answer.columns["locations"] for answer in client.run().observed]
    client.send(rewind([0], [7]))
    client.run()
    np.testing.assert_allclose(client.replies.rewound[-1].columns["locations"], answers[6], rtol=1e-5)
    client.send(fork([0], [1]))
    client.run()
    client.send(*(values([handle], [row]) for row in series(12)[7:] for handle in (0, 1)))
    for handle in (0, 1):
        again = [answer.columns["locations"] for answer in client.run().of(handle)[-5:]]
        np.testing.assert_allclose(again, answers[7:], rtol=1e-5)


def test_run_free_it_feeds_back_its_next_step(loaded: list[LoadedModel]) -> None:
    _, client = outlook(loaded)
    client.send(opening([0, 1], "outlook"))
    for row in series(5):
        client.send(values([0, 1], [row, row]))
    client.send(generate(0, 0, 3, temperature=0.0))
    straight = client.run().continuations[0].values.reshape(3, TARGETS)
    for step in range(3):
        expected = client.replies.of(1)[-1].columns["locations"].reshape(HORIZON, TARGETS)[0]
        np.testing.assert_allclose(straight[step], expected, rtol=1e-4)
        client.send(values([1], straight[step : step + 1, ::-1]))
        client.run()


async def test_the_horizon_is_told(serve: Serve) -> None:
    stub = (await serve()).stub
    model = (await stub.GetModel(pb.GetModelRequest(name="outlook"))).model
    assert (model.task, model.values.horizon, list(model.values.targets)) == (pb.TASK_FORECASTING, HORIZON, [1, 0])
    assert (await stub.GetModel(pb.GetModelRequest(name="weather"))).model.values.horizon == 1
