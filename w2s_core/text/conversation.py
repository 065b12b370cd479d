"""Adapts a conversation to what a chat template takes: one system message, and tool call ids of nine characters."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

Messages = list[dict[str, Any]]

_ID_LENGTH = 9
_CHECKS_ID_LENGTH = re.compile(rf"id\s*\|\s*length\s*!=\s*{_ID_LENGTH}\b")  # in the templates of Mistral's models


def merge_system_messages(messages: Sequence[dict[str, Any]]) -> Messages:
    """The messages with all system messages merged into one at the beginning, their texts joined by a blank line."""
    texts = system_texts(messages)
    others = [message for message in messages if message.get("role") != "system"]
    return [{"role": "system", "content": "\n\n".join(texts)}, *others] if texts else others


def system_texts(messages: Sequence[dict[str, Any]]) -> list[str]:
    """The texts of the system messages."""
    return [str(message.get("content", "")) for message in messages if message.get("role") == "system"]


def fit_call_ids(messages: Messages, template: str) -> Messages:
    """The messages with shorter ids of tool calls if the template's source refuses other lengths.

    A conversation that began at another server has that server's ids.
    """
    if not _CHECKS_ID_LENGTH.search(template):
        return messages
    return [_with_short_ids(message) for message in messages]


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if message.get("tool_call_id"):
        changes["tool_call_id"] = _short_id(message["tool_call_id"])
    if message.get("tool_calls"):
        calls = message["tool_calls"]
        changes["tool_calls"] = [{**call, "id": _short_id(call["id"])} if call.get("id") else call for call in calls]
    return message | changes


def _short_id(call_id: str) -> str:
    """The same short id for the same id; one that fits stays."""
    return call_id if len(call_id) == _ID_LENGTH else hashlib.sha256(call_id.encode()).hexdigest()[:_ID_LENGTH]
