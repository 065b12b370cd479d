"""`docs/api.md` lists exactly the request fields and errors that exist, and the fields that are rejected."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from pydantic import ValidationError

from server.api.schemas.chat import ChatBody
from server.api.schemas.completions import CompletionBody
from server.api.schemas.guidance import GuidanceOptions
from server.api.schemas.unsupported import UNSUPPORTED_FIELDS
from server.errors import ERROR_SPECS, HTTP_ERROR_CODES

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
BODIES: dict[str, type[CompletionBody] | type[ChatBody]] = {"completions": CompletionBody, "chat": ChatBody}
MINIMAL: dict[str, dict[str, Any]] = {
    "completions": {"model": "m", "prompt": "x"},
    "chat": {"model": "m", "messages": [{"role": "user", "content": "x"}]},
}


def table(heading: str) -> Iterator[list[str]]:
    """The rows of the first table under a heading, the cells stripped."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    for row in rows[2:]:
        yield [cell.strip() for cell in row.strip("|").split(" | ")]


FIELDS = {cells[0].strip("`"): cells for cells in table("Request fields")}
REFUSED = {cells[0].strip("` "): cells for cells in table("Fields that are refused")}


@pytest.mark.parametrize(("column", "endpoint"), [(1, "completions"), (2, "chat")])
def test_every_field_is_told_and_no_other(column: int, endpoint: str) -> None:
    told = {name for name, cells in FIELDS.items() if cells[column] == "✓"}
    assert told == BODIES[endpoint].model_fields.keys()
    assert all(cells[6] for cells in FIELDS.values())


def test_the_column_of_openai_is_its_own_clients() -> None:
    theirs = {"stream"}
    for params in (completion_create_params.CompletionCreateParamsBase, chat_params.CompletionCreateParamsBase):
        theirs |= params.__annotations__.keys()
    for name, mark in [(n, c[3]) for n, c in FIELDS.items()] + [(n, c[1]) for n, c in REFUSED.items()]:
        assert (name in theirs) == (mark == "✓"), name
    assert theirs <= FIELDS.keys() | REFUSED.keys() | NEWER, "a field of OpenAI's that this page does not name"


NEWER = {"moderation", "prompt_cache_options"}  # told of as unknown fields are


@pytest.mark.parametrize("endpoint", BODIES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_said_to_be_refused_is(endpoint: str, name: str) -> None:
    assert name not in BODIES[endpoint].model_fields
    with pytest.raises(ValidationError) as refused:
        BODIES[endpoint].model_validate({**MINIMAL[endpoint], name: ["something"]})
    assert [problem["loc"] for problem in refused.value.errors()] == [(name,)]


def test_what_is_refused_has_its_hint_on_the_page() -> None:
    said = {}
    for name, field in UNSUPPORTED_FIELDS.items():
        accepted = f"except {field.accepted_values}" if field.accepted else ""
        said[name] = "; ".join(part for part in (accepted, field.hint) if part)
    assert said == {name: cells[4].strip(" |") for name, cells in REFUSED.items()}


@pytest.mark.parametrize("name", UNSUPPORTED_FIELDS)
def test_what_a_hint_names_exists(name: str) -> None:
    """Every workaround that the page names works: a field, or a header."""
    exist = {"x-request-id", *CompletionBody.model_fields, *ChatBody.model_fields}
    assert {*re.findall("`([^`]+)`", UNSUPPORTED_FIELDS[name].hint)} <= exist


def test_fields_that_only_their_neutral_value_may_have_are_told() -> None:
    for body in BODIES.values():
        assert body.neutral_values.keys() - body.model_fields.keys() <= REFUSED.keys()


def test_every_key_of_guidance_is_told_with_its_default() -> None:
    told = {cells[0].strip("`"): cells[1].strip("`") for cells in table("Guidance")}
    assert told.keys() == GuidanceOptions.model_fields.keys()
    for name, field in GuidanceOptions.model_fields.items():
        if told[name] not in ("–", "the served model's"):
            assert told[name] == str(field.default).lower()


def test_every_error_is_told() -> None:
    rows = list(table("Errors"))
    told = {(int(cells[1]), code) for cells in rows for code in re.findall(r"`(\w+)`", cells[3])}
    ours = {(kind.status, kind.code) for kind in ERROR_SPECS.values() if kind.code} | set(HTTP_ERROR_CODES.items())
    assert ours - {(504, "upstream_error")} == told
