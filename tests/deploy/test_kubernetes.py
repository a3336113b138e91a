"""The manifests, rendered by Kustomize: valid by Kubernetes' schemas, and what the server needs."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kleinserve.config import Config
from kleinserve.errors import BadConfig
from kleinserve.identity.authenticator import Credentials
from kleinserve.identity.callers import token_digest, watch_callers
from kleinserve.metrics import Metrics

from tests.deploy.prometheus import DEPLOY

VERSION = "1.33"
OTHERS = ("ScaledObject", "RayService")  # their schemas come with their operators
NAME = "app.kubernetes.io/name"
pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, for `kubectl kustomize`")


@cache
def rendered(folder: str) -> tuple[dict[str, Any], ...]:
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes" / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return tuple(yaml.safe_load_all(done.stdout))


def one(kind: str, folder: str = "example") -> dict[str, Any]:
    (found,) = [each for each in rendered(folder) if each["kind"] == kind]
    return found


def ray_templates() -> Iterator[dict[str, Any]]:
    cluster = one("RayService", "ray")["spec"]["rayClusterConfig"]
    yield from (group["template"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]])


def pods() -> list[dict[str, Any]]:
    """The specs of every pod that there can be."""
    return [one("Deployment")["spec"]["template"]["spec"], *(template["spec"] for template in ray_templates())]


@pytest.mark.parametrize("folder", ["base", "example"])
def test_schemas(folder: str) -> None:
    """Everything that is Kubernetes' own is valid to the letter: no unknown field, none missing."""
    for manifest in rendered(folder):
        if manifest["kind"] not in OTHERS:
            kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_ray_pods() -> None:
    """The pods within the RayService are valid to the letter."""
    for template in ray_templates():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, VERSION, strict=True)


def test_a_wrong_field_is_seen() -> None:
    """The check above would see a misspelt field."""
    wrong = one("Deployment") | {"spec": one("Deployment")["spec"] | {"replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_settings() -> None:
    """Every KLEINSERVE_ variable is a setting that takes its value."""
    for pod in pods():
        for variable in (variable for container in pod["containers"] for variable in container.get("env", [])):
            name = variable["name"].removeprefix("KLEINSERVE_").lower()
            if name != variable["name"].lower():
                assert name in Config.model_fields
                if "value" in variable and name not in ("callers", "tls_certificate", "tls_key", "advertise"):
                    Config(**{name: variable["value"]})


def test_servers_reach_one_another() -> None:
    """Each says where the others pass its keys on to: its pod's address, which is a variable by then, and its port."""
    (server,) = one("Deployment")["spec"]["template"]["spec"]["containers"]
    names = [variable["name"] for variable in server["env"]]
    variables = {variable["name"]: variable for variable in server["env"]}
    assert variables["POD_IP"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert names.index("POD_IP") < names.index("KLEINSERVE_ADVERTISE")
    advertised = variables["KLEINSERVE_ADVERTISE"]["value"]
    assert advertised == f"$(POD_IP):{server['ports'][0]['containerPort']}"
    for address in ("10.0.0.1", "fd00::1"):
        assert Config(advertise=advertised.replace("$(POD_IP)", address)).advertise.endswith(":50051")
    assert variables["KLEINSERVE_REPLICAS_CA"]["value"] == "/etc/klein/tls/ca.crt"


def test_secrets_example(tmp_path: Path) -> None:
    """The example's callers file is refused until real hashes are filled in; the commands beside it make every file."""
    file, overlay = tmp_path / "callers.toml", DEPLOY / "kubernetes/example"
    text = (overlay / "callers.toml").read_text()
    file.write_text(text)
    with pytest.raises(BadConfig, match="64 hexadecimal digits"):
        watch_callers(file)
    for name in ("web.token", "replica-token"):
        (tmp_path / name).write_text(f"{name}\n")
        text = text.replace(f"SHA-256 OF {name}", token_digest(name))
    file.write_text(text)
    callers = watch_callers(file).value
    assert callers.replica_token() == "replica-token"
    assert callers.on_behalf(Credentials(("Bearer replica-token",)), "web").name == "web"
    made = re.findall(r"--from-file=(\S+)", (overlay / "kustomization.yaml").read_text())
    assert {each.partition("=")[0] for each in made} == {
        "callers.toml",
        "replica-token",
        "tls.crt",
        "tls.key",
        "ca.crt",
    }


def test_labels() -> None:
    """Service, budget, policy and spreading select the server's pods and no others."""
    labels = one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert labels == {NAME: "klein-serve"}
    assert one("Service")["spec"]["selector"] == labels
    assert one("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    (spread,) = one("Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
    dns = one("NetworkPolicy")["spec"]["egress"][1]["to"][0]["podSelector"]["matchLabels"]
    assert dns == {"k8s-app": "kube-dns"}


def test_service_links() -> None:
    """No pod gets variables named after Services, which the server would take for its settings."""
    assert [pod["enableServiceLinks"] for pod in pods()] == [False] * 4


def test_drain() -> None:
    """The grace before SIGKILL is longer than notice and drain together, and the notice longer than readiness takes."""
    pod = one("Deployment")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    settings = {each["name"]: float(each["value"]) for each in server["env"] if "_DRAIN_" in each["name"]}
    assert settings == {"KLEINSERVE_DRAIN_NOTICE_SECONDS": 10.0, "KLEINSERVE_DRAIN_GRACE_SECONDS": 40.0}
    assert pod["terminationGracePeriodSeconds"] == 60
    ready = server["readinessProbe"]
    assert ready["periodSeconds"] * ready["failureThreshold"] < 10


def test_probes() -> None:
    """Startup and readiness ask whether it is ready, liveness only whether it lives, all on the metrics port."""
    (server,) = one("Deployment")["spec"]["template"]["spec"]["containers"]
    paths = {name: server[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: path["path"] for name, path in paths.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/healthz",
    }
    assert {path["port"] for path in paths.values()} == {"metrics"}
    assert server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"] >= 600


def test_least_rights() -> None:
    """The server is no root, changes nothing of its image, knows no token of the cluster, and has one GPU."""
    pod = one("Deployment")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert server["resources"]["limits"]["nvidia.com/gpu"] == "1"
    mounted = {mount["name"]: mount for mount in server["volumeMounts"]}
    assert all(mounted[name]["readOnly"] for name in ("models", "callers", "tls"))
    assert not any("subPath" in mount for mount in mounted.values())  # those are never updated
    assert {volume["name"] for volume in pod["volumes"]} == set(mounted)


def test_ports_and_secrets() -> None:
    """Ports are the server's defaults; what is secret comes from Secrets alone."""
    assert one("Service")["spec"]["clusterIP"] == "None"
    ports = {port["name"]: port["port"] for port in one("Service")["spec"]["ports"]}
    defaults = Config()
    assert ports == {"grpc": defaults.port, "metrics": defaults.metrics_port}
    text = "".join(
        path.read_text() for path in (DEPLOY / "kubernetes").rglob("*.yaml") if path.parent.name != "example"
    )
    assert not re.search(r"postgres\w*://|token_sha256|BEGIN ", text)


def test_autoscaler() -> None:
    """The ScaledObject scales our Deployment by a metric that we have, between two bounds, with KEDA's own fields."""
    scaled = one("ScaledObject")["spec"]
    assert set(scaled) <= {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "pollingInterval",
        "cooldownPeriod",
        "advanced",
        "fallback",
        "triggers",
    }
    assert scaled["scaleTargetRef"] == {"name": one("Deployment")["metadata"]["name"]}
    assert 1 < scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    (trigger,) = scaled["triggers"]
    assert (trigger["type"], set(trigger)) == ("prometheus", {"type", "metricType", "metadata"})
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    (metric,) = re.findall(r"klein_\w+", trigger["metadata"]["query"])
    assert f"# TYPE {metric} gauge" in Metrics().exposition().decode()
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "klein"},
        "spec": {
            "maxReplicas": 8,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "klein"},
            "behavior": scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        },
    }
    kubernetes_validate.validate(autoscaler, VERSION, strict=True)


def test_ray() -> None:
    """KubeRay gets the settings that were found to be needed, fronts have no GPU, and replicas one each."""
    groups = {
        group["groupName"]: group for group in one("RayService", "ray")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    }
    (front,) = groups["fronts"]["template"]["spec"]["containers"]
    (replica,) = groups["replicas"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in front["resources"]["limits"]
    assert replica["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert groups["fronts"]["minReplicas"] >= 2
    for template in ray_templates():
        names = {variable["name"] for variable in template["spec"]["containers"][0]["env"]}
        assert {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"} <= names
    serve = yaml.safe_load(one("RayService", "ray")["spec"]["serveConfigV2"])
    assert [application["name"] for application in serve["applications"]] == ["klein"]
