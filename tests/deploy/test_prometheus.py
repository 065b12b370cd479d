"""A real Prometheus with the shipped rules scrapes a working replica, and every query returns data."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import yaml

from tests.deploy.conftest import answers, free_port
from tests.deploy.rolling import LOADING, real_replica
from tests.deploy.test_observability import DASHBOARD, RULES, panels, parsed, rules, selectors
from tests.replica import eventually, replica
from tests.telemetry.test_metrics import NAMES
from tests.tiny import save_tiny
from tests.traffic import Sizes, Traffic

SHIPPED = RULES.with_name("prometheus.yml")
RULE_TESTS = Path(__file__).with_name("rules.test.yml")
INTERVAL_S, RATE = 1, "15s"  # in place of the shipped 5 s, so that there is something to rate soon
CONFIG = """
large_models:
  tiny: {{model: "{large}"}}
  far: {{backend: remote, base_url: "{provider}/v1", model: plain, flavor: openai}}
pairs: {{nice: {{tuned: "{tuned}", untuned: "{untuned}", prompt_template: ""}}}}
served_models:
  tiny: {{large: tiny}}
  tiny-nice: {{large: tiny, guidance: {{pairs: {{nice: 1.0}}, beam_width: 2, successors: 2, chunk_length: 4}}}}
  far: {{large: far}}
workers: {{devices: [cpu], dtype: float32}}
"""


@pytest.fixture
def promtool() -> str:
    return found("promtool")


def found(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (apt-get install --no-install-recommends prometheus)")
    return path


def checks(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("kind", "path"), [("config", SHIPPED), ("rules", RULES)], ids=["config", "rules"])
def test_promtool_takes_what_is_shipped(promtool: str, kind: str, path: Path, tmp_path: Path) -> None:
    done = checks(promtool, "check", kind, path)
    assert done.returncode == 0, done.stdout + done.stderr
    spoilt = tmp_path / path.name
    spoilt.write_text(path.read_text().replace("rate(", "rat(").replace("static_configs", "static_config"))
    assert checks(promtool, "check", kind, spoilt).returncode != 0, "promtool does look"


def test_alerts_fire_when_they_must_and_not_otherwise(promtool: str) -> None:
    done = checks(promtool, "test", "rules", RULE_TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_both_ways() -> None:
    tests = [test for group in yaml.safe_load(RULE_TESTS.read_text())["tests"] for test in group["alert_rule_test"]]
    assert {test["alertname"] for test in tests if test["exp_alerts"]} == {rule["alert"] for rule in rules()}


class Prometheus:
    """A running one."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=60).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str) -> list[float]:
        """What a dashboard would show of it at the moment."""
        found = [float(series["value"][1]) for series in self.get("query", query=query)["result"]]
        return [value for value in found if not math.isnan(value)]


@contextmanager
def running_prometheus(program: str, folder: Path, replica_url: str) -> Iterator[Prometheus]:
    config = yaml.safe_load(SHIPPED.read_text())
    config["global"] = {"scrape_interval": f"{INTERVAL_S}s", "evaluation_interval": f"{INTERVAL_S}s"}
    config["rule_files"] = [str(SHIPPED.parent / name) for name in config["rule_files"]]
    [job] = config["scrape_configs"]
    [job["static_configs"][0]["targets"]] = [[urlsplit(replica_url).netloc]]
    path, listen = folder / "prometheus.yml", f"127.0.0.1:{free_port()}"
    path.write_text(yaml.safe_dump(config))
    options = [f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={listen}"]
    with subprocess.Popen([program, *options, "--log.level=error"]) as process:
        try:
            eventually(lambda: answers(f"http://{listen}/-/ready"))
            yield Prometheus(f"http://{listen}")
        finally:
            process.terminate()


def shown() -> list[str]:
    """The dashboard's queries, as Grafana asks them for all replicas."""
    [variable] = DASHBOARD["templating"]["list"]
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [e.replace("$__rate_interval", RATE).replace("$instance", variable["allValue"]) for e in expressions]


def kill_a_worker(pid: int) -> None:
    children = psutil.Process(pid).children(recursive=True)
    os.kill(next(child.pid for child in children if "w2s_core.worker.main" in child.cmdline()), signal.SIGKILL)


async def shows(true: Callable[[], Any]) -> None:
    await asyncio.to_thread(eventually, true, LOADING)


def test_every_query_has_data_while_load_runs(tmp_path: Path) -> None:
    program = found("prometheus")
    folders = {name: save_tiny(tmp_path / name, seed=i) for i, name in enumerate(("large", "tuned", "untuned"))}
    config = tmp_path / "w2s.yaml"
    start = contextmanager(real_replica({"W2S_CONFIG": str(config)}))
    with replica() as provider:
        provider.run_free()
        config.write_text(CONFIG.format(**folders, provider=provider.url))
        with start(0) as serving, running_prometheus(program, tmp_path, serving.url) as prometheus:
            asyncio.run(watch(prometheus, serving.url, serving.process.pid))


async def watch(prometheus: Prometheus, url: str, pid: int) -> None:
    kinds, sizes = ("whole", "stream", "cancel", "bad"), Sizes(least=8, most=60)
    async with (
        Traffic(url, kinds, "tiny", "tiny-nice", clients=3, sizes=sizes),
        Traffic(url, ("whole",), "far", "far", clients=1, sizes=sizes),
    ):
        await shows(lambda: prometheus.values("up") == [1])
        kill_a_worker(pid)
        await shows(lambda: prometheus.values("sum(w2s_worker_restarts_total)") == [1])
        for query in shown():
            await shows(lambda query=query: prometheus.values(query))
        for rule in rules():
            for selector in selectors(parsed(rule["expr"])):
                await shows(lambda name=selector.name: prometheus.values(name))
        await shows(lambda: all(rule["lastEvaluation"] > "2000" for rule in alerts(prometheus)))
        assert {rule["health"] for rule in alerts(prometheus)} == {"ok"}, alerts(prometheus)
        assert {rule["name"] for rule in alerts(prometheus)} == {rule["alert"] for rule in rules()}
        for name, (kind, _) in NAMES.items():
            sample = f"{name}_count" if kind == "histogram" else name
            values = prometheus.values(f"sum({sample})")
            assert values, f"{name} has no data"
            assert kind == "gauge" or values[0] > 0, f"{name} counted nothing"
    assert prometheus.get("label/instance/values", **{"match[]": "w2s_build_info"}), "Grafana's list of replicas"


def alerts(prometheus: Prometheus) -> list[Any]:
    return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
