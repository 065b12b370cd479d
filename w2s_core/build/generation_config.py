"""Reads sampling defaults from a model's `generation_config.json`, those fields that vLLM takes from it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from w2s_core.types import SamplingParams

logger = logging.getLogger(__name__)

FILE = "generation_config.json"
# As in vLLM's `ModelConfig.get_diff_sampling_param`, which ignores `do_sample` as well.
_TESTS: Mapping[str, Callable[[Any], bool]] = {
    "temperature": lambda value: value >= 0,
    "top_p": lambda value: 0 < value <= 1,
    "top_k": lambda value: isinstance(value, int) and value >= -1,
    "min_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": lambda value: value > 0,
    "max_new_tokens": lambda value: isinstance(value, int) and value >= 1,
}


def read_generation_config(source: str) -> SamplingParams:
    """The sampling parameters that the model's maker recommends; OpenAI's defaults where there are none.

    `source` is a folder or a hub id. A file or a value that cannot be used is left out, with a warning.
    """
    values: dict[str, Any] = {}
    for name, value in _read_file(source).items():
        if name in _TESTS and value is not None:
            if _is_number(value) and _TESTS[name](value):
                values[name] = value
            else:
                logger.warning("%s of %s: %s is ignored: one cannot sample with %r", FILE, source, name, value)
    if "max_new_tokens" in values:
        values["max_tokens"] = values.pop("max_new_tokens")
    if "top_k" in values:
        values["top_k"] = max(values["top_k"], 0)
    return replace(SamplingParams(), **values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _read_file(source: str) -> dict[str, Any]:
    from transformers.utils.hub import cached_file  # slow to import

    try:
        path = cached_file(source, FILE)
    except OSError:  # there is none, or the hub cannot be reached
        return {}
    try:
        content = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        logger.warning("%s of %s is ignored: it cannot be read: %s", FILE, source, error)
        return {}
    if not isinstance(content, dict):
        logger.warning("%s of %s is ignored: it is not an object", FILE, source)
        return {}
    return content
