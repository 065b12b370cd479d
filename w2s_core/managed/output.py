"""vLLM's output in the log: each line at its own level, with the name of the large model and without the API key."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import IO

from w2s_core.pool.stderr import Line, StderrRelay

_log = logging.getLogger("w2s.vllm")
# "(EngineCore pid=7) INFO 11-27 04:22:29 [core.py:1] …" of vLLM, "INFO:     …" of uvicorn
_LEVEL = re.compile(r"(?:\([^)]*\) *)*(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")


class VLLMOutput(StderrRelay):
    """Logs the output of the vLLM of the large model `name`. A line that names no level is logged as info."""

    def __init__(self, name: str, stream: IO[bytes], api_key: str) -> None:
        self._api_key = api_key
        super().__init__(name, stream)

    def _handle(self, line: Line) -> None:
        super()._handle(replace(line, text=line.text.replace(self._api_key, "[key]")))

    def _log_line(self, line: Line) -> None:
        level = _LEVEL.match(line.text)
        number = logging.getLevelNamesMapping()[level[1]] if level else logging.INFO
        _log.log(number, "vLLM of %s: %s", self._worker, line.text, extra={"large_model": self._worker})
