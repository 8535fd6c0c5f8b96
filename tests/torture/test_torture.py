"""The short form of `make torture`: real processes die under load, and every session goes on where it was.

A failure names its seed: `make torture ARGS="SCENARIO --count N --seed SEED"` goes on looking.
"""

import secrets
from pathlib import Path

import pytest
from tests.torture.clients import Load
from tests.torture.processes import namespaces_allowed, redis_command
from tests.torture.reference import LoneModel
from tests.torture.scenarios import SCENARIOS, Plan

CALM = Load(30, pace=0.1)
SHORT = {
    "kill-behind": (2, CALM),
    "kill-every-step": (1, CALM),
    "network-cut": (10, CALM),
    "worker-killed": (1, CALM),
    "drained": (1, CALM),
    "disk-full": (1, CALM),
    "store-killed": (2, CALM),
    "rolling-restart": (2, Load(100, clients=4, pace=0.5)),
}


def test_every_scenario_has_a_short_form() -> None:
    assert set(SHORT) == set(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_nothing_is_lost(scenario: str, tmp_path: Path, models: Path, lone: dict[str, LoneModel]) -> None:
    if scenario in ("store-killed", "rolling-restart") and redis_command() is None:
        pytest.skip("no Valkey or Redis: `make test` fetches one on Debian")
    if scenario == "disk-full" and not namespaces_allowed():
        pytest.skip("a small disk takes a name space of its own, which this user may not make")
    count, load = SHORT[scenario]
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    outcome = await SCENARIOS[scenario](Plan(tmp_path, models, lone, seed, count, load))
    assert outcome.disturbances >= count
    assert outcome.sessions >= load.sessions
