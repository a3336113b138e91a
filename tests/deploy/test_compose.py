"""The compose file and the Dockerfile: valid, and in step with the server."""

import re
import subprocess
from typing import Any

import pytest
import yaml
from kleinserve.__main__ import _parser
from kleinserve.config import Config
from kleinserve.engine import compiled

from tests.deploy.prometheus import DEPLOY

FILE = DEPLOY / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def test_schema() -> None:
    """It is valid by the compose specification."""
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_two_servers_share_a_ledger() -> None:
    """Two servers with one ledger, alike but for homes and own addresses; every setting is one that they take."""
    one, other = SERVICES["server-1"], SERVICES["server-2"]
    alike = {name: service for name, service in one.items() if name not in ("volumes", "environment")}
    assert alike == {name: other[name] for name in alike}
    assert one["volumes"] != other["volumes"]
    for name in ("server-1", "server-2"):
        settings = SERVICES[name]["environment"]
        assert settings == one["environment"] | {"KLEINSERVE_ADVERTISE": f"{name}:{Config().port}"}
    for name, value in one["environment"].items():
        Config(**{name.removeprefix("KLEINSERVE_").lower(): re.sub(r"\$\{\w+[^}]*\}", "x", value)})
    assert _parser().parse_args([re.sub(r"\$\{\w+:-(\w+)\}", r"\1", part) for part in one["command"]]).insecure


def test_envoy_knows_both() -> None:
    """Envoy's configuration is made by the server's own command for both servers."""
    command = SERVICES["envoy-config"]["command"][0].partition(" > ")[0].split()
    arguments = _parser().parse_args(command[1:])
    assert (command[0], arguments.replica, arguments.port) == (
        "kleinserve",
        ["server-1:50051", "server-2:50051"],
        50050,
    )


def test_what_is_mounted_exists() -> None:
    """Every file of ours that a service mounts is there, and volumes are declared."""
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_nothing_is_open() -> None:
    """Nothing is published beyond this machine, and the one password comes from outside."""
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert set(re.findall(r"\$\{POSTGRES_PASSWORD[^}]*\}", FILE.read_text())) == {
        "${POSTGRES_PASSWORD:?set it in deploy/.env}"
    }


def test_prometheus_scrapes_both() -> None:
    """Prometheus's configuration names the servers as compose does."""
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    targets = scraped["static_configs"][0]["targets"]
    assert targets == [f"{name}:{Config().metrics_port}" for name in SERVICES if name.startswith("server-")]


def test_grace() -> None:
    """The time before SIGKILL is longer than notice and drain together."""
    settings = SERVICES["server-1"]["environment"]
    drain = sum(float(settings[f"KLEINSERVE_DRAIN_{name}_SECONDS"]) for name in ("NOTICE", "GRACE"))
    assert float(SERVICES["server-1"]["stop_grace_period"].removesuffix("s")) > drain


@pytest.mark.parametrize(
    "said", ["USER 10001:10001", "--constraint constraints.txt", "ARG VARIANT=cuda", 'CMD ["serve"]']
)
def test_dockerfile(said: str) -> None:
    """The image's user is no root, its packages are constraints.txt's, and it serves."""
    assert said in DOCKERFILE


def test_dockerfile_has_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA image installs every program that the server looks for before it compiles: else it serves eagerly."""
    asked: list[str] = []
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiled.shutil, "which", lambda program: asked.append(program) or f"/usr/bin/{program}")
    compiled.check()
    (packages,) = re.findall(r"apt-get install ([^&]+) &&", DOCKERFILE)
    assert asked
    assert {*asked, "gcc"} <= set(packages.split())  # gcc: Triton's


def test_dockerfile_copies_what_there_is() -> None:
    """Everything that the Dockerfile copies exists, and is not kept out by its ignore file."""
    copied = [name for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M) for name in line.split()[:-1]]
    kept = re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.M)
    assert copied
    assert sorted(copied) == sorted(kept)
    assert all((DEPLOY.parent / name).exists() for name in copied)
