"""The command line and the environment of a managed `vllm serve`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from w2s_core.errors import ConfigurationError
from w2s_core.provider_config import VLLMConfig

HOST = "127.0.0.1"


def find_program(name: str, config: VLLMConfig) -> str:
    """The path of the program `vllm` of the large model `name`. Raises ConfigurationError, which says how to get it."""
    program = shutil.which(config.command)
    if program is None:
        raise ConfigurationError(
            f"large_models.{name}.command: there is no program `{config.command}`. vLLM needs an environment of "
            "its own, because it pins other versions than this server. Make one (python3 -m venv /opt/vllm && "
            "/opt/vllm/bin/pip install vllm) and name its program here: /opt/vllm/bin/vllm"
        )
    return program


def command_line(program: str, name: str, folder: str, port: int, config: VLLMConfig) -> list[str]:
    """`vllm serve` of the model in `folder`, which may be a hub id, under the model name `name` at a loopback port."""
    command = [program, "serve", folder, f"--served-model-name={name}", f"--host={HOST}", f"--port={port}"]
    command += [f"--tensor-parallel-size={config.tensor_parallel_size}"]
    if config.quantization is not None:
        command += [f"--quantization={config.quantization}"]
    if config.max_model_len is not None:
        command += [f"--max-model-len={config.max_model_len}"]
    # Its access log would have a line for each chunk of each hypothesis.
    return [*command, "--disable-uvicorn-access-log", *config.extra_args]


def environment(api_key: str) -> Mapping[str, str]:
    """The server's own environment and the API key, which others on this machine could read in a command line."""
    return {"VLLM_NO_USAGE_STATS": "1"} | os.environ | {"VLLM_API_KEY": api_key}
