"""Settings: precedence of their sources, and rejected configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from server.settings.config import DEMO, ServerConfig, Settings, load_settings
from server.settings.environment import EnvironmentSource, key_path, variable_name
from w2s_core.config import EngineConfig
from w2s_core.errors import ConfigurationError

REMOTE: dict[str, Any] = {"base_url": "http://x/v1", "model": "m"}
ADAPTED: dict[str, Any] = {"model": "demo:reviews-negative", "adapter": "/adapter"}


def write(folder: Path, content: Any) -> Path:
    path = folder / "w2s.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def demo_with(**changes: Any) -> dict[str, Any]:
    """The demo's file, with one path such as served_models__x__large set to another value."""
    content: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(DEMO)))
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = content
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = value
    return content


def keys(settings: Settings) -> dict[str, str]:
    return {name: config.key.get_secret_value() for name, config in settings.server.api_keys.items()}


def test_without_a_file_the_demo_is_served() -> None:
    settings = load_settings()
    assert list(settings.served_models) == ["smollm2", "smollm2-positive"]
    guidance = settings.served_models["smollm2-positive"].guidance
    assert guidance is not None
    assert (guidance.method, guidance.pairs, guidance.rows, guidance.chunk_length) == ("cbs", {"positive": 0.4}, 8, 5)
    assert settings.large_models["smollm2"].model == "demo:smollm2-135m-instruct"
    assert settings.server == ServerConfig()


def test_a_file_that_names_no_models_keeps_the_demo(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, {"server": {"port": 9}}))
    assert settings.server.port == 9
    assert "smollm2" in settings.served_models


def test_a_file_that_names_models_serves_those_only(tmp_path: Path) -> None:
    content = {"large_models": {"a": {"model": "x"}}, "served_models": {"a": {"large": "a"}}}
    settings = load_settings(write(tmp_path, content))
    assert list(settings.large_models) == ["a"]
    assert list(settings.served_models) == ["a"]
    assert settings.pairs == {}


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "# nothing\n")).server.port == 8000


@given(flag=st.none() | st.integers(1, 9), env=st.none() | st.integers(11, 19), file=st.none() | st.integers(21, 29))
def test_flags_win_over_environment_over_file_over_defaults(
    tmp_path_factory: pytest.TempPathFactory, flag: int | None, env: int | None, file: int | None
) -> None:
    path = write(tmp_path_factory.mktemp("config"), {"server": {"port": file}} if file else "")
    with pytest.MonkeyPatch.context() as patch:
        if env:
            patch.setenv("W2S_SERVER__PORT", str(env))
        settings = load_settings(path, {"server": {"port": flag}} if flag else None)
    assert settings.server.port == (flag or env or file or 8000)
    assert settings.server.host == "127.0.0.1"  # merged key by key, not section by section


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"sever": {}}, "sever"),
        ({"server": {"prot": 1}}, "server.prot"),
        ({"workers": {"device": "cpu"}}, "workers.device"),
        (demo_with(large_models__smollm2__modle="x"), "large_models.smollm2.modle"),
        (demo_with(pairs__positive__template=""), "pairs.positive.template"),
        (
            demo_with(large_models__r={"backend": "remote", "base_url": "http://x", "modle": "x"}),
            "large_models.r.modle",
        ),
        (demo_with(large_models__r={"backend": "remote", **REMOTE, "devices": None}), "large_models.r.devices"),
        (demo_with(large_models__smollm2__base_url="http://x"), "large_models.smollm2.base_url"),
        (demo_with(pairs__r={"backend": "remote", "tuned": {**REMOTE, "x": 1}, "untuned": REMOTE}), "pairs.r.tuned.x"),
        (demo_with(served_models__smollm2__larg="x"), "served_models.smollm2.larg"),
        (
            demo_with(**{"served_models__smollm2-positive__guidance__beam": 2}),
            "served_models.smollm2-positive.guidance.beam",
        ),
    ],
)
def test_an_unknown_key_of_the_file_is_refused_by_name(tmp_path: Path, content: Any, key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{key}: unknown key"):
        load_settings(write(tmp_path, content))


@pytest.mark.parametrize("name", ["W2S_FOO", "W2S_SERVER__PROT", "W2S_WORKERS__DEVICE", "W2S_SERVER__"])
def test_an_unknown_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigurationError, match=rf"\(from {name}\): unknown key"):
        load_settings()


def test_the_variable_that_names_the_file_is_not_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2S_CONFIG", "somewhere.yaml")
    load_settings()


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("W2S_SERVER__PORT", "9000", lambda s: s.server.port == 9000),
        ("W2S_SERVER__API_KEYS", "one, two", lambda s: keys(s) == {"key-1": "one", "key-2": "two"}),
        ("W2S_SERVER__API_KEYS", "123", lambda s: keys(s) == {"key-1": "123"}),
        ("W2S_SERVER__API_KEYS", '["a,b"]', lambda s: keys(s) == {"key-1": "a,b"}),
        ("W2S_SERVER__API_KEYS", '{"alice": "a"}', lambda s: keys(s) == {"alice": "a"}),
        ("W2S_SERVER__API_KEYS__ALICE", "a", lambda s: keys(s) == {"alice": "a"}),
        ("W2S_SERVER__API_KEYS_FILE", "/keys", lambda s: s.server.api_keys_file == Path("/keys")),
        ("W2S_WORKERS__DEVICES", '["cuda:0", "cpu"]', lambda s: s.workers.devices == ("cuda:0", "cpu")),
        ("W2S_WORKERS__THREADS", "2", lambda s: s.workers.threads == 2),
        ("W2S_PAIRS__POSITIVE__PROMPT_TEMPLATE", "null", lambda s: s.pairs["positive"].prompt_template is None),
        ("W2S_PAIRS__POSITIVE__PROMPT_TEMPLATE", "", lambda s: s.pairs["positive"].prompt_template == ""),
        (
            "W2S_PAIRS__POSITIVE__PROMPT_TEMPLATE",
            "{prompt}",
            lambda s: s.pairs["positive"].prompt_template == "{prompt}",
        ),
        ("W2S_LARGE_MODELS__Llama__MODEL", "x", lambda s: s.large_models["Llama"].model == "x"),
        ("W2S_LARGE_MODELS__SMOLLM2__MODEL", "x", lambda s: s.large_models["smollm2"].model == "x"),
        ("W2S_SERVED_MODELS", '{"x": {"large": "smollm2"}}', lambda s: "x" in s.served_models),
    ],
)
def test_every_kind_of_key_can_be_a_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str, read: Any) -> None:
    monkeypatch.setenv(name, value)
    assert read(load_settings())


def test_a_section_and_a_key_below_it_merge() -> None:
    environ = {"W2S_SERVER__PORT": "1", "W2S_SERVER": '{"host": "h", "port": 2}', "HOME": "x", "w2s_server__host": "y"}
    assert EnvironmentSource(Settings, environ)() == {"server": {"host": "h", "port": "1"}}


def test_a_section_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="W2S_SERVER__PORT"):
        EnvironmentSource(Settings, {"W2S_SERVER": "x", "W2S_SERVER__PORT": "1"})()


@given(st.lists(st.from_regex(r"[a-z0-9]+(_[a-z0-9]+)*", fullmatch=True), min_size=1, max_size=4))
def test_names_of_variables_lead_to_their_keys(path: list[str]) -> None:
    assert key_path(variable_name(".".join(path))) == path


def test_a_template_of_null_and_an_empty_one_differ(tmp_path: Path) -> None:
    content = demo_with(pairs__positive__prompt_template=None)
    assert load_settings(write(tmp_path, content)).pairs["positive"].prompt_template is None
    content = demo_with(pairs__positive__prompt_template="")
    assert load_settings(write(tmp_path, content)).pairs["positive"].prompt_template == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (demo_with(served_models__x__large="nobody"), "served_models.x.large: no large model is named `nobody`"),
        (
            demo_with(served_models__x={"large": "smollm2", "guidance": {"pairs": {"nobody": 1}}}),
            "served_models.x.guidance.pairs.nobody: no pair is named `nobody`",
        ),
        (
            demo_with(served_models__x={"large": "smollm2", "guidance": {"pairs": {"positive": float("inf")}}}),
            "served_models.x.guidance.pairs.positive: must be at most 1,000,000",
        ),
        (demo_with(served_models__x={"large": "smollm2", "guidance": {}}), "served_models.x.guidance.pairs: names no"),
        (
            demo_with(**{"served_models__smollm2-positive__guidance__trace": "stream"}),
            "served_models.smollm2-positive.guidance.trace: must be true or false",
        ),
        (
            demo_with(**{"served_models__smollm2-positive__guidance__beam_width": 0}),
            "guidance.beam_width: must be between 1 and 2,147,483,647",
        ),
        (demo_with(server={"max_rows_per_request": 7}), "takes 8 rows, more than server.max_rows_per_request"),
        (demo_with(workers={"threads": 0}), "workers.threads: must be above 0"),
        (demo_with(workers={"threads": "many"}), "workers.threads: "),
        (demo_with(workers={"max_rows": 0}), "workers.max_rows: must be above 0"),
        (demo_with(workers={"kv_cache_gb": -1}), "workers.kv_cache_gb: must be above 0"),
        (demo_with(workers={"dtype": "float8"}), "workers.dtype: "),
        (demo_with(server={"port": 65536}), "server.port: "),
        (demo_with(server={"request_timeout_s": 0}), "server.request_timeout_s: "),
        (demo_with(server={"log_level": "loud"}), "server.log_level: "),
        (
            demo_with(large_models__smollm2__backend="abacus"),
            "large_models.smollm2.backend: must be `local` or `remote`",
        ),
        (demo_with(pairs__positive__backend="abacus"), "pairs.positive.backend: must be `local` or `remote`"),
        (demo_with(large_models__r={"backend": "remote", "model": "x"}), "large_models.r.base_url: "),
        (
            demo_with(large_models__r={"backend": "remote", **REMOTE, "flavor": "vllm"}),
            "large_models.r.tokenizer: flavor vllm",
        ),
        (
            demo_with(large_models__r={"backend": "remote", **REMOTE, "base_url": "ftp://x"}),
            "large_models.r.base_url: must begin with http",
        ),
        (
            demo_with(pairs__r={"backend": "remote", "tuned": REMOTE, "untuned": {**REMOTE, "context_length": 0}}),
            "pairs.r.untuned.context_length: must be at least 1",
        ),
        (demo_with(pairs__positive__tuned={"model": "x"}), "w2s.yaml: pairs.positive.tuned.adapter: Field required"),
        (demo_with(pairs__positive__untuned={**ADAPTED, "x": 1}), "w2s.yaml: pairs.positive.untuned.x: unknown key"),
        (demo_with(pairs__positive__tuned=1), "pairs.positive.tuned: "),
        (demo_with(large_models__smollm2__model={"adapter": "x"}), "w2s.yaml: large_models.smollm2.model.model: "),
        ({"large_models": {}, "served_models": {}}, "large_models: "),
        ({"large_models": {"a": {"model": "x"}}}, "served_models: Field required"),
        ({"pairs": None, "large_models": {"a": {"model": "x"}}, "served_models": {"a": {"large": "a"}}}, "pairs: "),
        ("- a list", "must be a mapping"),
        ("a: [", "is not YAML"),
        (
            "server:\n  port: 1\n  host: h\n  port: 2",
            "w2s.yaml: is not YAML: the key `port` is there a second time in line 4, column 3",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_naming_the_key(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_settings(write(tmp_path, content))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_guidance_may_take_as_many_rows_as_a_request_may() -> None:
    content = demo_with(server={"max_rows_per_request": 16})
    assert Settings(**content).server.max_rows_per_request == 16


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml: cannot be read: No such file or directory$"):
        load_settings(tmp_path / "nowhere.yaml")


def test_a_merged_key_may_be_overridden(tmp_path: Path) -> None:
    text = "server: &one {port: 1}\nworkers: {threads: 1}\nlarge_models: {m: {model: x}}\n"
    text += "served_models: {m: &m {large: m}, n: {<<: *m, large: m}}"
    assert load_settings(write(tmp_path, text)).served_models["n"].large == "m"


def test_secrets_are_neither_shown_nor_quoted_in_errors(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, {"server": {"api_keys": ["sesame"]}}))
    assert "sesame" not in repr(settings)
    with pytest.raises(ConfigurationError) as refusal:
        load_settings(write(tmp_path, {"server": {"api_keys": [["sesame"]]}}))
    assert "sesame" not in str(refusal.value)


def test_the_engine_gets_the_limits(tmp_path: Path) -> None:
    content = {
        "server": {"max_queued_rows": 3, "max_rows_per_request": 20, "request_timeout_s": 5},
        "workers": {"max_rows": 40, "threads": 1},
    }
    config = load_settings(write(tmp_path, content)).engine_config()
    assert isinstance(config, EngineConfig)
    limits = config.limits
    assert (limits.max_queued_rows, limits.max_rows_per_request, limits.max_rows) == (3, 20, 40)
    assert limits.request_timeout_s == 5
    assert config.workers.threads == 1


@pytest.mark.parametrize(
    ("sampling", "key"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ""}, "stop: "),
        ({"stop": ["a", ""]}, "stop.1: "),
        ({"stop": list("abcde")}, "stop: "),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"temperatur": 1}, "temperatur: unknown key"),
        ({"logprobs": 1}, "logprobs: unknown key"),
    ],
)
def test_sampling_defaults_have_the_bounds_of_requests(tmp_path: Path, sampling: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(write(tmp_path, demo_with(served_models__smollm2__sampling=sampling)))
    assert f"served_models.smollm2.sampling.{key}" in str(caught.value)


def test_sampling_defaults_of_a_served_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = demo_with(served_models__smollm2__sampling={"stop": "###", "top_k": -1, "min_p": None})
    monkeypatch.setenv("W2S_SERVED_MODELS__SMOLLM2__SAMPLING__TEMPERATURE", "0.4")
    served = load_settings(write(tmp_path, content)).engine_config().served_models["smollm2"]
    assert served.sampling == {"stop": ("###",), "top_k": 0, "temperature": 0.4}
