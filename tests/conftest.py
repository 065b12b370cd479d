"""For every test: one thread, an order that keeps folders together, and no key in what this process logs."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

gc.disable()  # until all tests are imported: what their libraries make stays, and is not searched for garbage again

# How fast an example runs is the machine's business.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# Two processes run the suite side by side on two cores, and models as small as these gain nothing by a second thread.
# Before torch is imported; workers have their own number, `workers.threads`.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What `pytest --fast` (`make test-fast`) leaves out: it starts processes, reads real models or imports big libraries.
NOT_FAST = (
    *("benchmarks", "clients", "demo", "deploy", "e2e", "evaluation", "gpu", "judges", "managed", "recipes"),
    *("surface", "training", "vllm", "test_data_sets.py", "test_layering.py"),
    "pairs/test_pair_commands.py",
    *(
        "server/playground/test_accessibility.py",
        "server/playground/test_page.py",
        "server/playground/test_settings.py",
    ),
    *("pool/test_heartbeat.py", "pool/test_log_scan.py", "pool/test_restarts.py", "pool/test_stderr.py"),
    *("remote/test_killed_streams.py", "remote/test_reward_model_guides.py", "remote/test_second_instance.py"),
    *("server/http/test_limits.py", "server/http/test_shutdown.py", "server/logs/test_log_scan.py"),
    *("server/settings/test_reload.py", "server/test_cli.py", "server/test_model_safety.py"),
    *("structured/test_grammar_checker.py", "telemetry/test_tracing.py"),
    *("worker/test_adapters_on_workers.py", "worker/test_eft_on_workers.py", "worker/test_eft_over_http.py"),
    *("worker/test_engine_on_workers.py", "worker/test_grammar_on_workers.py", "worker/test_grammar_over_http.py"),
    *(
        "worker/test_int8.py",
        "worker/test_int8_on_workers.py",
        "worker/test_logprobs_on_workers.py",
        "worker/test_required_tools.py",
        "worker/test_sampling_extras.py",
    ),
    *("worker/test_reward_models_on_workers.py", "worker/test_reward_models_over_http.py"),
    *("worker/test_refusals_on_workers.py", "worker/test_scoring_fixed_texts.py", "worker/test_soak.py"),
    *("worker/test_sentencepiece_over_http.py", "worker/test_vocabularies_on_workers.py"),
    *("worker/test_no_paths_on_workers.py", "worker/test_reasoning_on_workers.py", "worker/test_worker_metrics.py"),
)

KEYS = ("sk-secret", "sk-very-secret-0123456789", "sk-scanned-for")  # that tests hand out for keys


class Listener(logging.Handler):
    """Keeps what shows a key, whoever logs it, as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.shown: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if any(key in text for key in KEYS):
            self.shown.append(text)


@pytest.fixture(autouse=True)
def _no_key_is_logged() -> Iterator[Listener]:
    listener, root = Listener(), logging.getLogger()
    root.addHandler(listener)
    yield listener
    root.removeHandler(listener)
    assert not listener.shown


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts tests by folder, in the random order that folders have: those of a folder share engines, which start once
    in a process, and each of the processes that share the suite begins with a run of neighbours."""
    order: dict[Path, int] = {}
    for item in items:
        order.setdefault(item.path.parent, len(order))
    items.sort(key=lambda item: order[item.path.parent])


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out all that starts a process or reads a real model")


def pytest_configure(config: pytest.Config) -> None:
    """With --fast, a test that starts another Python fails: it belongs into NOT_FAST."""
    starts_others = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if config.getoption("--fast") and not starts_others:
        sys.addaudithook(_refuse_processes)


def _refuse_processes(event: str, details: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and details[1][0] == sys.executable:
        raise RuntimeError("with --fast no test starts a process; name this one in NOT_FAST of tests/conftest.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    here = Path(__file__).parent
    left_out = config.getoption("--fast") and any(collection_path == here / name for name in NOT_FAST)
    return True if left_out else None
