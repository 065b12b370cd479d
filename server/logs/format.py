"""How logs look: lines for people, or one JSON object a line. Both take messages that are mappings of fields."""

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

_PLAIN = re.compile(r"[\w./:+=@-]+", re.ASCII)


def log_to_stderr(level: str, form: str) -> None:
    """All logs, uvicorn's included: stdout is for programs. `form` is `human` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(json_formatter() if form == "json" else HumanFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def json_formatter() -> logging.Formatter:
    """Time in UTC; fields beside `time`, `level`, `logger` and `message`."""
    names = {"levelname": "level", "name": "logger"}
    not_ours = [*RESERVED_ATTRS, "color_message"]  # uvicorn says its messages once more for terminals
    return JsonFormatter(
        ["levelname", "name", "message"], rename_fields=names, timestamp="time", reserved_attrs=not_ours
    )


class HumanFormatter(logging.Formatter):
    """`time level logger: message key=value …`; what a client chose cannot begin a new line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        message: object = record.msg
        if isinstance(message, Mapping):
            record = copy(record)
            record.msg, record.args = _line(message), ()
        return super().format(record)


def _line(fields: Mapping[str, Any]) -> str:
    said = {key: value for key, value in fields.items() if value is not None and key != "message"}
    message = json.dumps(fields["message"])[1:-1]
    return " ".join([message, *(f"{key}={_value(value)}" for key, value in said.items())])


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(value)
