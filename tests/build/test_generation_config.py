"""A model's `generation_config.json` as sampling defaults: the fields that vLLM takes, and files that are broken."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny
from w2s_core.build.generation_config import read_generation_config
from w2s_core.build.local import LocalModels
from w2s_core.build.tokenizers import TokenizerCache
from w2s_core.config import EngineConfig, LargeModelConfig, ServedModelConfig
from w2s_core.telemetry.metrics import Metrics
from w2s_core.types import SamplingParams


def written(folder: Path, content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    return str(folder)


def test_the_fields_that_vllm_takes(tmp_path: Path) -> None:
    """Those of its `ModelConfig.get_diff_sampling_param`; `do_sample: false` changes nothing there either."""
    source = written(
        tmp_path,
        {
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 20,
            "min_p": 0.05,
            "repetition_penalty": 1.05,
            "max_new_tokens": 2048,
            "do_sample": False,
            "eos_token_id": [1, 2],
            "length_penalty": 2.0,
            "typical_p": 0.5,
        },
    )
    assert read_generation_config(source) == SamplingParams(
        max_tokens=2048, temperature=0.6, top_p=0.95, top_k=20, min_p=0.05, repetition_penalty=1.05
    )


@pytest.mark.parametrize("content", [{"do_sample": False, "eos_token_id": 2}, {"temperature": None, "top_k": -1}])
def test_what_a_file_does_not_say_is_openais_default(tmp_path: Path, content: Any) -> None:
    assert read_generation_config(written(tmp_path, content)) == SamplingParams()


def test_a_model_without_the_file_has_openais_defaults(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_generation_config(str(tmp_path)) == SamplingParams()
    assert not caplog.records


@pytest.mark.parametrize(
    "value", [("temperature", "0.6"), ("temperature", -1), ("top_p", 0), ("top_k", 2.5), ("min_p", True), ("top_p", 2)]
)
def test_a_value_that_cannot_be_sampled_with_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: tuple[str, Any]
) -> None:
    source = written(tmp_path, dict([value]) | {"repetition_penalty": 1.2})
    assert read_generation_config(source) == SamplingParams(repetition_penalty=1.2)
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert value[0] in record.getMessage()


@pytest.mark.parametrize("content", ["{not JSON", "[1, 2]", '"text"'])
def test_a_file_that_cannot_be_read_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    assert read_generation_config(written(tmp_path, content)) == SamplingParams()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize(
    ("word", "becomes"),
    [("auto", SamplingParams(temperature=0.6, top_k=20)), ("ignore", SamplingParams()), ("vllm", SamplingParams())],
)
def test_a_local_model_has_its_files_defaults_unless_they_are_ignored(
    tmp_path: Path, word: Any, becomes: SamplingParams
) -> None:
    """`vllm` is vLLM's own word for it: `--generation-config vllm`."""
    model = LargeModelConfig(str(save_tiny(tmp_path / "model")), generation_config=word)
    written(tmp_path / "model", {"temperature": 0.6, "top_k": 20})
    local = LocalModels(EngineConfig({"m": model}, {"m": ServedModelConfig("m")}), TokenizerCache(), Metrics())
    assert local.large_model(model).default_sampling == becomes
