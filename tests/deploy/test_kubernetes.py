"""The manifests are valid against the Kubernetes schemas and consistent with the server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.app import create_app
from server.engine_host import EngineHost
from server.settings.config import load_settings
from tests.deploy.image import ROOT, stages

K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("base", "cuda", "vllm")
PATCHES = {K8S / "cuda" / "device.yaml", K8S / "vllm" / "replica.yaml"}
OTHER = {K8S / "prometheus-adapter.yaml", *K8S.glob("*/kustomization.yaml"), *K8S.glob("*/w2s.yaml")}
VERSION = "1.33"
Manifest = dict[str, Any]


def documents(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def validate(manifest: Manifest) -> None:
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def written() -> list[tuple[Path, Manifest]]:
    files = sorted(set(K8S.rglob("*.yaml")) - PATCHES - OTHER)
    return [(path, manifest) for path in files for manifest in documents(path.read_text())]


def of_kind(kind: str, name: str = "w2s") -> Manifest:
    [found] = [m for _, m in written() if m["kind"] == kind and m["metadata"]["name"] == name]
    return found


def pod(name: str = "w2s") -> Manifest:
    return of_kind("Deployment", name)["spec"]["template"]["spec"]


def container(name: str = "w2s") -> Manifest:
    [only] = pod(name)["containers"]
    return only


@pytest.mark.parametrize(("path", "manifest"), written(), ids=lambda value: getattr(value, "stem", None))
def test_every_manifest_is_valid(path: Path, manifest: Manifest) -> None:
    validate(manifest)
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(manifest | {"spek": {}})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_renders_to_valid_manifests(overlay: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    rendered = subprocess.run([kubectl, "kustomize", K8S / overlay], capture_output=True, text=True, check=False)
    assert rendered.returncode == 0, rendered.stderr
    manifests = documents(rendered.stdout)
    for manifest in manifests:
        validate(manifest)
    [server] = [m for m in manifests if m["kind"] == "Deployment" and m["metadata"]["name"] == "w2s"]
    spec = server["spec"]["template"]["spec"]
    [config] = [m for m in manifests if m["kind"] == "ConfigMap"]
    assert [v["configMap"]["name"] for v in spec["volumes"] if "configMap" in v] == [config["metadata"]["name"]]
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == (None if overlay == "base" else "1")
    assert ("LLM_KEY" in rendered.stdout) == (overlay == "vllm")


@pytest.mark.parametrize("overlay", ["base", "vllm"])
def test_what_is_served_is_a_configuration(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_KEY", "x")
    settings = load_settings(K8S / overlay / "w2s.yaml")
    grace = pod()["terminationGracePeriodSeconds"]
    pre_stop = int(container()["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pre_stop + settings.server.drain_timeout_s < grace, "killed in the middle of an answer otherwise"


def test_the_large_model_is_where_the_replicas_look_for_it() -> None:
    config = yaml.safe_load((K8S / "vllm" / "w2s.yaml").read_text())["large_models"]["llama"]
    [port] = of_kind("Service", "vllm")["spec"]["ports"]
    assert config["base_url"] == f"http://vllm:{port['port']}/v1"
    assert f"--model={config['model']}" in container("vllm")["args"]
    devices = container("vllm")["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--tensor-parallel-size={devices}" in container("vllm")["args"]


def test_probes_ask_for_what_the_server_answers() -> None:
    app = create_app(EngineHost(lambda: None))  # type: ignore[arg-type,return-value]
    paths = app.openapi()["paths"]
    probes = {name: container()[name]["httpGet"] for name in ("readinessProbe", "livenessProbe")}
    assert (probes["readinessProbe"]["path"], probes["livenessProbe"]["path"]) == ("/ready", "/health")
    assert {probe["path"] for probe in probes.values()} <= set(paths)
    [port] = container()["ports"]
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert of_kind("Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    *_, image = stages()
    assert port["containerPort"] == int(image.one("EXPOSE"))


def test_the_pod_is_as_unprivileged_as_its_image_allows() -> None:
    *_, image = stages()
    context, inner = pod()["securityContext"], container()["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == image.one("USER")
    assert context["runAsNonRoot"]
    assert inner == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {mount["mountPath"] for mount in container()["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {image.one("VOLUME"), "/tmp"}
    assert pod()["automountServiceAccountToken"] is False


def test_kubernetes_own_variables_do_not_stop_the_server() -> None:
    """A service called w2s makes W2S_PORT=tcp://… for every pod, and an unknown W2S_ variable is refused."""
    assert of_kind("Service")["metadata"]["name"] == "w2s"
    assert pod()["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", ["base", "vllm"])
def test_the_keys_are_a_secret_and_required(overlay: str) -> None:
    [volume] = [volume for volume in pod()["volumes"] if "secret" in volume]
    assert not volume["secret"].get("optional", False), "without one, everybody would be let in"
    assert not volume["secret"]["defaultMode"] & 0o007
    [mount] = [mount for mount in container()["volumeMounts"] if mount["name"] == volume["name"]]
    [file] = [Path(entry["value"]) for entry in container()["env"] if entry["name"] == "W2S_SERVER__API_KEYS_FILE"]
    assert str(file.parent) == mount["mountPath"]
    assert (
        f"{volume['secret']['secretName']} --from-literal={file.name}="
        in (K8S / overlay / "kustomization.yaml").read_text()
    )


def test_the_autoscaler_and_the_budget_concern_the_deployment() -> None:
    labels = of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    for found in (of_kind("Deployment"), of_kind("PodDisruptionBudget")):
        assert found["spec"]["selector"]["matchLabels"] == labels
    assert of_kind("Service")["spec"]["selector"] == labels
    scaling = of_kind("HorizontalPodAutoscaler")["spec"]
    assert scaling["scaleTargetRef"]["name"] == of_kind("Deployment")["metadata"]["name"]
    assert "replicas" not in of_kind("Deployment")["spec"], "each apply would undo the autoscaler"
    [metric] = scaling["metrics"]
    adapter = yaml.safe_load((K8S / "prometheus-adapter.yaml").read_text())
    assert [rule["name"]["as"] for rule in adapter["rules"]["custom"]] == [metric["pods"]["metric"]["name"]]
    assert metric["pods"]["metric"]["name"] == "w2s_rows_waiting"
