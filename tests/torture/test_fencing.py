"""A replica that hangs and wakes up again after another one took its sessions over."""

import asyncio
import signal
from pathlib import Path

import numpy as np
import pytest
from tests.torture.processes import Redis, Server, redis_command
from tests.torture.reference import LoneModel

from hiddenstate import AsyncClient, AsyncSession, SessionTakenOver, ValuePrediction

MODEL = "next-value"
FIRST, SECOND = [20.0, 21.0, 19.5, 20.2], [20.4, 20.9, 21.7]


async def observed_on(session: AsyncSession, late: asyncio.Task[ValuePrediction]) -> None:
    """Goes on with a session for a few seconds: its old owner may answer before it learns what happened meanwhile."""
    await late
    for _ in range(100):
        await session.observe(99.0)
        await asyncio.sleep(0.05)


async def test_a_stopped_owner_cannot_overwrite(tmp_path: Path, models: Path, lone: dict[str, LoneModel]) -> None:
    if redis_command() is None:
        pytest.skip("no Valkey or Redis: `make test` fetches one on Debian")
    store = Redis(tmp_path)
    async with store.running():
        old, new = (Server(tmp_path, models, "--store", store.url, name=name) for name in ("old", "new"))
        async with old.running(), new.running(), AsyncClient(old.address) as holder, AsyncClient(new.address) as taker:
            held = await holder.session(MODEL, "sensor")
            await held.observe_many(FIRST)
            while held.durable_step < len(FIRST):
                await asyncio.sleep(0.02)
                await held.heartbeat()

            old.signal(signal.SIGSTOP)
            late = asyncio.create_task(held.observe(99.0))
            taken = await taker.session(MODEL, "sensor", resume=True)
            assert taken.step == len(FIRST)
            predictions = await taken.observe_many(SECOND)
            old.signal(signal.SIGCONT)

            with pytest.raises(SessionTakenOver):
                await observed_on(held, late)

            expected = lone[MODEL].answers([*FIRST, *SECOND])
            np.testing.assert_allclose(predictions.location, [answer[1] for answer in expected[-3:]], rtol=1e-5)
            assert (await taken.peek()).step == len(FIRST) + len(SECOND)

            async with AsyncClient(old.address) as third:
                found = await third.session(MODEL, "sensor", resume=True)
                prediction = await found.observe(20.0)
            assert prediction.step == len(FIRST) + len(SECOND) + 1
            (answer,) = lone[MODEL].answers([*FIRST, *SECOND, 20.0])[-1:]
            assert prediction.surprise == pytest.approx(answer[0], rel=1e-5)
