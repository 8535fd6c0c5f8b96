"""deploy/kubernetes: valid against Kubernetes' own schemas, hardened, and safe to restart and to scale."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from tests.deploy.programs import ROOT

from hiddenstate_server.settings import Settings, load

Manifest = dict[str, Any]
KUSTOMIZATION = yaml.safe_load((ROOT / "deploy/kustomization.yaml").read_text())


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    """What `kubectl apply -k deploy` applies, without what Kustomize generates."""
    files = [ROOT / "deploy" / name for name in KUSTOMIZATION["resources"]]
    return [manifest for file in files for manifest in yaml.safe_load_all(file.read_text())]


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The only one of this kind and name."""
    (found,) = (one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Pod templates by the name of what makes them."""
    return {one["metadata"]["name"]: one["spec"]["template"] for one in manifests if "template" in one["spec"]}


@pytest.fixture(scope="module")
def server(manifests: list[Manifest]) -> Manifest:
    """The server's pod."""
    return pods(manifests)["hiddenstate"]


def flags(server: Manifest) -> Settings:
    """The settings that the server's arguments give; StartError for one that does not exist."""
    return load(server["spec"]["containers"][0]["args"])


def test_every_file_is_applied() -> None:
    listed = {(ROOT / "deploy" / name).resolve() for name in KUSTOMIZATION["resources"]}
    assert listed == {path.resolve() for path in Path(ROOT / "deploy/kubernetes").glob("*.yaml")}


def test_manifests_match_the_schemas(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_pods_are_hardened_and_limited(manifests: list[Manifest]) -> None:
    assert set(pods(manifests)) == {"hiddenstate", "envoy", "valkey"}
    for name, pod in pods(manifests).items():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True, name
        assert pod["spec"]["automountServiceAccountToken"] is False, name
        for container in pod["spec"]["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name


def test_services_and_selectors_meet(manifests: list[Manifest]) -> None:
    labels = [pod["metadata"]["labels"] for pod in pods(manifests).values()]
    for manifest in manifests:
        spec = manifest["spec"]
        selector = spec["selector"] if manifest["kind"] == "Service" else spec.get("selector", {}).get("matchLabels")
        if selector:
            assert selector in labels, manifest["metadata"]["name"]


def test_the_grace_time_is_longer_than_the_drain(server: Manifest) -> None:
    (container,) = server["spec"]["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert server["spec"]["terminationGracePeriodSeconds"] > pause + flags(server).drain_timeout


def test_the_server_shares_its_store_and_its_key(manifests: list[Manifest], server: Manifest) -> None:
    store = flags(server).store
    assert store.startswith("redis://valkey:6379")
    assert named(manifests, "Service", "valkey")["spec"]["ports"][0]["port"] == 6379
    (environment,) = server["spec"]["containers"][0]["env"]
    assert environment["name"] == "HIDDENSTATE_SNAPSHOT_KEY"
    assert environment["valueFrom"]["secretKeyRef"]["key"] == "snapshot-key"


def test_probes_ask_the_health_service(server: Manifest) -> None:
    (container,) = server["spec"]["containers"]
    (port,) = (port["containerPort"] for port in container["ports"] if port["name"] == "grpc")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": port}, probe


def test_the_autoscaler_alone_decides_how_many(manifests: list[Manifest]) -> None:
    assert "replicas" not in named(manifests, "Deployment", "hiddenstate")["spec"]
    scaler = named(manifests, "HorizontalPodAutoscaler", "hiddenstate")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "hiddenstate"
    assert scaler["minReplicas"] >= 2
    assert named(manifests, "PodDisruptionBudget", "hiddenstate")["spec"]["maxUnavailable"] == 1


def test_envoy_finds_the_pods_by_name(manifests: list[Manifest]) -> None:
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    (volume,) = pods(manifests)["envoy"]["spec"]["volumes"]
    assert volume["configMap"]["name"] == generated["name"]
    assert generated["files"] == ["envoy.yaml"]
    (cluster,) = yaml.safe_load((ROOT / "deploy/envoy.yaml").read_text())["static_resources"]["clusters"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    service = named(manifests, "Service", address["address"])["spec"]
    assert service["clusterIP"] == "None"
    assert address["port_value"] in [port["port"] for port in service["ports"]]
