"""docker-compose.yml: hardened services whose very commands run outside containers, beside a real Prometheus."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.deploy.programs import ROOT, Server, Stage, free_port

SECONDS_TO_SCRAPE = 60


def test_services_are_hardened_and_limited(services: dict[str, Any]) -> None:
    assert set(services) == {"server", "prometheus", "example"}
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name


def test_published_ports_are_local_and_distinct(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert len({port.split(":")[1] for port in published}) == len(published)


def test_mounted_files_exist_and_are_read_only(services: dict[str, Any]) -> None:
    mounts = [mount.split(":") for service in services.values() for mount in service.get("volumes", [])]
    files = [mount for mount in mounts if mount[0].startswith(".")]
    assert files
    for source, _, mode in files:
        assert (ROOT / source).is_file(), source
        assert mode == "ro"


def test_sessions_are_kept_on_a_volume(services: dict[str, Any], stages: dict[str, Stage]) -> None:
    ((volume, folder),) = (mount.split(":") for mount in services["server"]["volumes"])
    assert volume in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["volumes"]
    assert folder == stages["cpu"].env["HIDDENSTATE_STATE_FOLDER"]
    made = [value for kind, value in stages["base"].instructions if kind == "RUN"]
    assert any(f"--owner {dict(stages['base'].instructions)['USER']}" in run and folder in run for run in made)


def test_the_server_is_built_from_a_stage_that_exists(services: dict[str, Any], stages: dict[str, Stage]) -> None:
    build = services["server"]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).is_file()
    assert build["target"] in stages
    assert services["example"]["image"] == services["server"]["image"]


@pytest.fixture(scope="module")
def streamed(services: dict[str, Any], server: Server) -> str:
    """What the example client of docker-compose.yml prints."""
    example = services["example"]
    ((source, target, _),) = (mount.split(":") for mount in example["volumes"])
    (command,) = example["command"]
    command = command.replace("server:50051", f"localhost:{server.port}").replace(target, str(ROOT / source))
    command, _, pause = command.rpartition(";")
    assert pause.split()[0] == "sleep"
    run = subprocess.run(
        [*example["entrypoint"], command], env=server.environment, check=True, capture_output=True, text=True
    )
    return run.stdout


def test_the_example_client_streams_a_sensor(streamed: str) -> None:
    rows = (ROOT / "deploy/demo/weather.csv").read_text().splitlines()[1:]
    assert len(streamed.splitlines()) >= len(rows)


class Prometheus:
    """A real Prometheus that scrapes the server as docker-compose.yml lets it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, promql: str) -> list[dict[str, Any]]:
        """The series an instant query returns, waiting until there are any."""
        give_up = time.monotonic() + SECONDS_TO_SCRAPE
        while time.monotonic() < give_up:
            try:
                with urllib.request.urlopen(
                    f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': promql})}"
                ) as answer:
                    series: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            except OSError:  # it is still starting
                series = []
            if series:
                return series
            time.sleep(0.2)
        pytest.fail(f"no series for {promql}")


@pytest.fixture(scope="module")
def prometheus_server(
    services: dict[str, Any],
    server: Server,
    prometheus: str,
    streamed: str,  # noqa: ARG001  there is something to see only after observations
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    """Prometheus with the flags of docker-compose.yml and the scrape configuration it mounts."""
    folder = tmp_path_factory.mktemp("prometheus")
    source, mounted, _ = services["prometheus"]["volumes"][0].split(":")
    configuration = yaml.safe_load((ROOT / source).read_text())
    (scrape,) = configuration["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["server:9090"]}]
    scrape["static_configs"] = [{"targets": [f"localhost:{server.metrics_port}"]}]
    configuration["global"]["scrape_interval"] = "1s"
    here = folder / "prometheus.yml"
    here.write_text(yaml.safe_dump(configuration))
    inside = {mounted: str(here), "/prometheus": str(folder / "data")}
    flags = [
        f"{name}={inside.get(value, value)}"
        for name, _, value in (flag.partition("=") for flag in services["prometheus"]["command"])
    ]
    port = free_port()
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen(
            [prometheus, *flags, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        ) as process,
    ):
        try:
            yield Prometheus(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()


def test_prometheus_answers_the_latency_histogram(prometheus_server: Prometheus) -> None:
    (up,) = prometheus_server.query('up{job="hiddenstate"} == 1')
    assert up["value"][1] == "1"
    series = prometheus_server.query(
        "histogram_quantile(0.99, sum by (model, le) (hiddenstate_observation_latency_seconds_bucket)) > 0"
    )
    latencies = {one["metric"]["model"]: float(one["value"][1]) for one in series}
    assert set(latencies) == {"next-value"}
    assert 0 < latencies["next-value"] < 5


def test_prometheus_counts_every_observation_of_every_worker(
    prometheus_server: Prometheus, services: dict[str, Any]
) -> None:
    rows = len((ROOT / services["example"]["volumes"][0].split(":")[0]).read_text().splitlines()) - 1
    (total,) = prometheus_server.query('sum(hiddenstate_observations_total{model="next-value"}) > 0')
    assert int(total["value"][1]) == rows


def test_the_health_check_of_prometheus_passes(prometheus_server: Prometheus, services: dict[str, Any]) -> None:
    prometheus_server.query("up")
    kind, *command = services["prometheus"]["healthcheck"]["test"]
    assert kind == "CMD"
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here; it is in the image")
    command = [word.replace("http://localhost:9090", prometheus_server.url) for word in command]
    assert subprocess.run(command, capture_output=True).returncode == 0
