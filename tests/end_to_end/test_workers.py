"""Two workers behind one port: a session is found again whichever worker a connection reaches."""

from pathlib import Path

import pytest
from tests.end_to_end.conftest import serving

from hiddenstate import AsyncClient, SessionExists, SessionNotFound, ValuePrediction
from hiddenstate_models.export import random_bundle


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    random_bundle(folder, "next-value", seed=3)
    return folder


async def test_sessions_are_resumed_listed_and_unique_across_workers(models: Path, tmp_path: Path) -> None:
    names = [f"sensor-{i}" for i in range(6)]
    values = [1.0, 2.0, 1.5]
    with serving(tmp_path, "--workers", "2", "--models", str(models), "--detach-timeout", "120") as (address, _):
        before: dict[str, ValuePrediction] = {}
        for name in names:
            async with AsyncClient(address, timeout=60) as client:
                session = await client.session("next-value", id=name)
                before[name] = (await session.observe_many(values))[-1]
        async with AsyncClient(address, timeout=60) as client:
            assert {session.id for session in await client.sessions()} == set(names)
            with pytest.raises(SessionExists):
                await client.session("next-value", id=names[0])
            with pytest.raises(SessionNotFound):
                await client.session("next-value", id="never", resume=True)
        for name in names:
            async with AsyncClient(address, timeout=60) as client:
                session = await client.session("next-value", id=name, resume=True)
                assert session.step == len(values)
                prediction = await session.peek()
                assert isinstance(prediction, ValuePrediction)
                assert prediction.location == pytest.approx(before[name].location)
                await session.close()
