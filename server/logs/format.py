"""Log formats: lines for people, or one JSON object per line. A message may be a mapping of fields in both."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from copy import copy
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

_UNQUOTED = re.compile(r"[\w./:+=@-]+", re.ASCII)


def configure_logging(level: str, log_format: str) -> None:
    """Sends all logs, uvicorn's included, to stderr. `log_format` is `human` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(json_formatter() if log_format == "json" else HumanFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def json_formatter() -> logging.Formatter:
    """One JSON object per line: `time` (UTC), `level`, `logger`, `message`, and the fields of a mapping."""
    names = {"levelname": "level", "name": "logger"}
    omitted = [*RESERVED_ATTRS, "color_message"]  # uvicorn repeats its messages there with colours
    return JsonFormatter(
        ["levelname", "name", "message"], rename_fields=names, timestamp="time", reserved_attrs=omitted
    )


class HumanFormatter(logging.Formatter):
    """`time level logger: message key=value …`. Values are quoted, so that a client cannot forge a new line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        message: object = record.msg
        if isinstance(message, Mapping):
            record = copy(record)
            record.msg, record.args = _format_fields(message), ()
        return super().format(record)


def _format_fields(fields: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in fields.items() if value is not None and key != "message"}
    message = json.dumps(fields["message"])[1:-1]
    return " ".join([message, *(f"{key}={_format_value(value)}" for key, value in shown.items())])


def _format_value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if _UNQUOTED.fullmatch(text) else json.dumps(value)
