"""Reads YAML files and turns validation errors into one line that names the keys and quotes no value."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from server.settings.environment import variable_name
from w2s_core.errors import ConfigurationError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that a mapping has twice; by itself it takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key `{key.value}` is there a second time"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises YAMLError, also for a key that a mapping has twice."""
    return yaml.load(text, _Loader)


def read_yaml(path: Path, example_key: str) -> dict[str, Any]:
    """The mapping in a YAML file; an empty one for a file without content.

    `example_key` appears in the message when the file holds no mapping. Raises ConfigurationError, which never quotes
    the file's content, as that may be a secret.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: cannot be read: not UTF-8 at byte {error.start}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: is not YAML: {_yaml_problem(error)}") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: cannot be read: it is nested too deeply") from None
    except ValueError as error:  # a date that does not exist
        raise ConfigurationError(f"{path}: is not YAML: {error}") from None
    if content is None:  # an empty file, or only comments
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigurationError(f"{path}: must be a mapping of keys such as `{example_key}`")
    return content


def _yaml_problem(error: yaml.YAMLError) -> str:
    """The problem and its position, without the line of the file that the parser's own message quotes."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it contains a character that YAML does not allow"
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}" if mark else problem


def describe_validation_error(error: ValidationError) -> str:
    """One line that names every key at fault, and never a value, which may be a secret."""
    problems: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_context=False):
        if item["loc"][-1:] == ("str",) and isinstance(item["input"], dict):
            continue  # a mapping was written for a name or a mapping: what is wrong in it says another item
        key, message = _dotted_key(item["loc"]), item["msg"].removeprefix("Value error, ")
        if item["type"] == "backend":
            key += ".backend"
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            variable = variable_name(key)
            key, message = f"{key} (from {variable})" if variable in os.environ else key, "unknown key"
        problems.setdefault(key, []).append(message)
    return "; ".join(f"{key}: {' or '.join(messages)}".removeprefix(": ") for key, messages in problems.items())


def _dotted_key(loc: tuple[int | str, ...]) -> str:
    """The dotted key of pydantic's `loc`, without its labels for union members, such as `int` or `literal['auto']`."""
    parts = [str(part) for part in loc]
    if len(parts) > 2 and parts[0] in ("large_models", "pairs", "reward_models"):
        del parts[2]  # the label behind a model's name: its backend
    if len(parts) > 4 and parts[0] == "judges" and parts[2] in ("pair", "reward_model"):
        del parts[3]  # the same
    if len(parts) > 1 and parts[-1] in ("int", "float", "str"):
        parts.pop()
    return ".".join(parts[:1] + [part for part in parts[1:] if "[" not in part and part != "AdapterConfig"])
