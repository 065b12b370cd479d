"""Reads a saved search: a response with its tree, or the rounds of a stream."""

from __future__ import annotations

import json
import re
from codecs import getincrementaldecoder
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from os.path import commonprefix
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from server.api.schemas.responses import CandidateNode, RoundCandidateNode, SearchRound
from w2s_core.errors import ConfigurationError
from w2s_core.search.tree import Fate

_TREE = TypeAdapter(list[list[list[CandidateNode]]])
_DATA, _DONE = re.compile("^data:", re.MULTILINE), re.compile(r"^data:\s*\[DONE\]", re.MULTILINE)
_NOT_DATA = (":", "event:", "id:", "retry:")  # lines of server-sent events


@dataclass(frozen=True, slots=True)
class SavedCandidate:
    """A candidate of a saved search. `parent` is its parent's position in the round before; None is the prompt.

    `text` is its whole text, the first `offset` characters of which are its parent's.
    """

    parent: int | None
    text: str
    offset: int
    score: float
    rank: float
    scores: Mapping[str, float]
    finish_reason: str | None
    fate: Fate


@dataclass(slots=True)
class SavedSearch:
    """The rounds of one prompt's search; later ones are missing if it is `truncated`, or its file was `cut`."""

    rounds: list[list[SavedCandidate]] = field(default_factory=list)
    truncated: bool = False
    cut: bool = False
    _positions: dict[int, int] = field(default_factory=dict)  # of the last round's candidates, by id

    def add(self, nodes: Sequence[CandidateNode | RoundCandidateNode]) -> None:
        """Appends a round. Raises ValueError if it does not continue the one before."""
        if not nodes:
            raise ValueError(f"{self._next_chunk} has no candidates")
        candidates = [self._candidate(node) for node in nodes]
        self.rounds.append(candidates)
        self._positions = {node.id: position for position, node in enumerate(nodes)}

    @property
    def _next_chunk(self) -> str:
        return f"chunk {len(self.rounds) + 1}"

    def _candidate(self, node: CandidateNode | RoundCandidateNode) -> SavedCandidate:
        if not isfinite(node.score):
            raise ValueError(f"{self._next_chunk}: the score of candidate {node.id} is too large")
        parent = None if node.parent is None else self._positions.get(node.parent)
        if node.parent is not None and parent is None:
            raise ValueError(f"{self._next_chunk}: candidate {node.id} has a parent ({node.parent}) that is none")
        before = "" if parent is None else self.rounds[-1][parent].text
        if isinstance(node, CandidateNode):
            text, offset = node.text, len(commonprefix([before, node.text]))  # noqa: RUF071
            fate: Fate = "pruned" if not node.kept else "kept" if node.finish_reason is None else "finished"
        elif not 0 <= node.offset <= len(before):
            raise ValueError(f"{self._next_chunk}: the offset of candidate {node.id} is not in its parent's text")
        else:
            text, offset, fate = before[: node.offset] + node.text, node.offset, node.fate
        return SavedCandidate(parent, text, offset, node.score, node.rank, node.scores, node.finish_reason, fate)


def read_search(path: Path, prompt: int) -> SavedSearch:
    """The search of prompt number `prompt`, from 0, in a file: a response as JSON, or a stream as it was received, or
    with one JSON object a line. Of a stream that was cut these are its whole chunks. Raises ConfigurationError, which
    names the file.
    """
    try:
        # An incremental decoder leaves out the half of a character that a cut file ends with.
        objects, cut = _objects(getincrementaldecoder("utf-8-sig")().decode(path.read_bytes()))
        searches = _searches(objects, cut)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: cannot be read: not UTF-8 at byte {error.start}") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field_path = ".".join(map(str, problem["loc"]))
        raise ConfigurationError(f"{path}: has no valid search tree: {field_path}: {problem['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    if prompt not in searches:
        numbers = ", ".join(map(str, sorted(searches)))
        raise ConfigurationError(f"{path}: --prompt {prompt}: it has the search of prompt {numbers}")
    searches[prompt].cut = cut
    return searches[prompt]


def _objects(text: str) -> tuple[list[Any], bool]:
    """The JSON objects of a file, in order, and whether it is a stream that ends too early. Raises ValueError."""
    try:
        whole = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError:
        return _events(text)
    return (whole if isinstance(whole, list) else [whole]), False


def _events(text: str) -> tuple[list[Any], bool]:
    found: list[Any] = []
    last = text.count("\n") + 1  # which is empty unless the file ends within a line
    for number, line in _data_lines(text):
        try:
            found.append(json.loads(line, parse_constant=_refuse_constant))
        except json.JSONDecodeError:
            if number < last or not found:
                raise ValueError(f"line {number} is neither JSON nor an event of a stream") from None
            return found, True
    return found, _DATA.search(text) is not None and _DONE.search(text) is None


def _data_lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        data = line.strip().removeprefix("data:").strip()
        if data and data != "[DONE]" and not data.startswith(_NOT_DATA):
            yield number, data


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _searches(objects: Sequence[Any], cut: bool) -> dict[int, SavedSearch]:
    """The searches of a response, maybe `cut`, by their prompts' numbers. Raises ValueError, also pydantic's."""
    found: defaultdict[int, SavedSearch] = defaultdict(SavedSearch)
    responses = set()
    for content in objects:
        guidance = content.get("guidance", content) if isinstance(content, dict) else None
        if not isinstance(guidance, dict) or not {"tree", "round"} & guidance.keys():
            continue
        responses.add(str(content.get("id")))
        if len(responses) > 1:
            raise ValueError("holds more than one response")
        if "round" in guidance:
            _add_round(found, SearchRound.model_validate(guidance["round"]))
            continue
        for prompt, chunks in enumerate(_TREE.validate_python(guidance["tree"])):
            found[prompt].truncated = bool(guidance.get("tree_truncated"))
            for nodes in chunks:
                found[prompt].add(nodes)
    if not any(search.rounds for search in found.values()):
        if cut:
            raise ValueError("is cut before a chunk of its search is whole")
        raise ValueError('holds no search tree: ask with `guidance.trace` true or, for a stream, "stream"')
    return {prompt: search for prompt, search in found.items() if search.rounds}


def _add_round(found: Mapping[int, SavedSearch], round_: SearchRound) -> None:
    search = found[round_.prompt]
    if round_.truncated:
        search.truncated = True
        return
    if round_.chunk != len(search.rounds) + 1:
        raise ValueError(f"chunk {len(search.rounds) + 1} of prompt {round_.prompt} is missing")
    search.add(round_.candidates or [])
