"""The compose files are valid and consistent with the files that they mount and the commands that they start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from deploy.local import upstream
from server.settings.config import ServerConfig, load_settings
from tests.deploy.image import ROOT, stages

DEPLOY = ROOT / "deploy"
FILES = ("compose.yaml", "compose.cuda.yaml", "compose.keys.yaml", "compose.vllm.yaml")
REPLICAS = ("replica-1", "replica-2")


def read(name: str) -> dict[str, Any]:
    """The file with its variables' defaults, its anchors and merges resolved, without its extensions."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DEPLOY / name).read_text())
    return {key: value for key, value in yaml.safe_load(text).items() if not key.startswith("x-")}


def services(name: str) -> dict[str, Any]:
    return read(name)["services"]


@pytest.mark.parametrize("name", FILES)
def test_the_specification_is_kept(name: str) -> None:
    spec = read(name)
    PyCompose.from_yaml(yaml.safe_dump(spec)).to_spec()
    spec["services"]["replica-1"]["imagee"] = "w2s"
    with pytest.raises(ValueError, match="imagee"):
        PyCompose.from_yaml(yaml.safe_dump(spec)).to_spec()


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_is_mounted_is_there(name: str) -> None:
    for service in services(name).values():
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            assert not source.startswith(".") or (DEPLOY / source).exists(), volume
            assert Path(target).is_absolute()


@pytest.mark.parametrize("replica", REPLICAS)
def test_replicas_write_to_their_volume_only_and_may_drain(replica: str) -> None:
    service = services("compose.yaml")[replica]
    *_, image = stages()
    assert service["read_only"]
    assert [volume.split(":")[1] for volume in service["volumes"]] == [image.one("VOLUME")]
    assert service["cap_drop"] == ["ALL"]
    drain = float(service["environment"]["W2S_SERVER__DRAIN_TIMEOUT_S"])
    assert float(service["stop_grace_period"].removesuffix("s")) > drain
    assert "ports" not in service, "nobody comes past the load balancer"


def test_nginx_gets_what_its_configuration_asks_for() -> None:
    nginx = services("compose.yaml")["nginx"]
    asked = set(re.findall(r"\$\{(W2S_\w+)\}", (DEPLOY / "nginx.conf").read_text()))
    given = nginx["environment"]
    assert asked == {name for name in given if name.startswith("W2S_")}
    port = next(iter(stages()[-1].all("EXPOSE")))
    expected = upstream([f"{replica}:{port} resolve" for replica in REPLICAS])
    assert given["W2S_REPLICAS"] == expected
    [published] = nginx["ports"]
    assert published.endswith(f":{given['W2S_LISTEN']}")
    assert given["W2S_RUN_DIR"] == given["NGINX_ENVSUBST_OUTPUT_DIR"]
    assert any(mount.startswith(f"{given['W2S_RUN_DIR']}:") for mount in nginx["tmpfs"])


def test_prometheus_asks_every_replica() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    [group] = job["static_configs"]
    assert group["targets"] == [f"{replica}:{ServerConfig().port}" for replica in REPLICAS]
    assert config["rule_files"] == ["rules.yml"]


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "w2s.yml").read_text())["providers"]
    grafana = services("compose.yaml")["grafana"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/dashboard.json"
    assert f"./grafana:{provider['options']['path']}:ro" in grafana["volumes"]


def test_the_large_model_on_vllm_is_what_the_replicas_ask() -> None:
    vllm = services("compose.vllm.yaml")
    config = next(volume.split(":") for volume in vllm["replica-1"]["volumes"])
    assert vllm["replica-1"]["command"] == ["serve", "--config", config[1]]
    settings = load_settings(DEPLOY / config[0])
    large = settings.large_models["llama"]
    assert large.base_urls == ("http://vllm:8000/v1",)
    assert f"--model={large.model}" in vllm["vllm"]["command"]
    assert large.api_key_env in vllm["replica-1"]["environment"]
    [device] = vllm["vllm"]["deploy"]["resources"]["reservations"]["devices"]
    assert f"--tensor-parallel-size={device['count']}" in vllm["vllm"]["command"]


def test_keys_come_from_a_secret() -> None:
    spec = read("compose.keys.yaml")
    for replica in REPLICAS:
        [secret] = spec["services"][replica]["secrets"]
        assert secret in spec["secrets"]
        assert spec["services"][replica]["environment"] == {"W2S_SERVER__API_KEYS_FILE": f"/run/secrets/{secret}"}
