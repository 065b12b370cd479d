"""Draws a search tree as SVG: chunks from left to right, candidates coloured by their scores.

The colours are those of cividis, which people with and without colour-blindness see alike (Nuñez et al. 2018,
doi:10.1371/journal.pone.0199239).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree as ET

from server.commands.trace_file import SavedCandidate, SavedSearch

_CIVIDIS = ("00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838")
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0
_MARGIN, _TOP, _FOOT = 20, 62, 64  # px; the page's head and foot hold its title and its legend
_ROW, _BOX, _WIDTH, _GAP, _PROMPT = 36, 28, 330, 70, 76
_TITLE = 1_000  # characters of a candidate's text that its title has: whole ones grow with the answer's square
_UNITS = 40  # half-width characters that a box has room for beside its score
_STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; fill: #1f2328; }
.page { fill: #ffffff; stroke: #d1d9e0; }
.head { font-size: 14px; font-weight: 600; }
.note { fill: #59636e; }
.score { text-anchor: end; font-weight: 600; }
.prompt, .box { fill: #f6f8fa; stroke: #818b98; }
.kept .box, .finished .box { fill: #ffffff; stroke: #1f2328; stroke-width: 1.5; }
.pruned text, .pruned .box, .merged text, .merged .box { opacity: 0.55; }
.merged .box { stroke-dasharray: 4 3; }
.swatch { stroke: #1f2328; stroke-width: 0.75; }
.edge { fill: none; stroke: #afb8c1; stroke-width: 1; }
.edge.kept, .edge.finished { stroke: #0969da; stroke-width: 1.75; }
.edge.answer { stroke-width: 3.5; }
"""


def draw_search(search: SavedSearch, title: str) -> str:
    """The SVG of a search with at least one candidate: a file of its own, on a light page."""
    rows = _rows(search.rounds)
    height = _TOP + max(map(len, rows)) * _ROW + _FOOT
    width = 2 * _MARGIN + _PROMPT + len(rows) * (_GAP + _WIDTH)
    size = {"viewBox": f"0 0 {width} {height}", "width": str(width), "height": str(height)}
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", **size})
    _add(svg, "title", title)
    _add(svg, "desc", "Chunks from left to right. The candidates in the beam are joined, the others are faded.")
    _add(svg, "style", _STYLE)
    _add(svg, "rect", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=10, **{"class": "page"})
    _add(svg, "text", title, x=_MARGIN, y=26, **{"class": "head"})
    _Tree(search, rows, height).draw(svg)
    _draw_legend(svg, _score_range(search), height - 24)
    if search.truncated or search.cut:
        _add(svg, "text", "Later chunks are missing.", x=_MARGIN + 560, y=height - 24, **{"class": "note"})
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode") + "\n"


class _Tree:
    """The boxes and edges of a search on a page of this height, whose candidates are in `rows` from top to bottom."""

    def __init__(self, search: SavedSearch, rows: Sequence[Sequence[int]], height: int) -> None:
        self._rounds = search.rounds
        self._rows = rows
        self._middle = (_TOP + height - _FOOT) / 2
        self._range = _score_range(search)
        self._answer = set(_answer_path(search.rounds))

    def draw(self, svg: ET.Element) -> None:
        """Adds the edges, and the boxes over them."""
        edges = ET.SubElement(svg, "g")
        left, middle = _MARGIN, self._middle
        _add(svg, "rect", x=left, y=middle - _BOX / 2, width=_PROMPT, height=_BOX, rx=6, **{"class": "prompt"})
        _add(svg, "text", "prompt", x=left + 14, y=middle + 4)
        heights: Mapping[int, float] = {}
        for number, (candidates, rows) in enumerate(zip(self._rounds, self._rows, strict=True)):
            x = _MARGIN + _PROMPT + _GAP + number * (_GAP + _WIDTH)
            _add(svg, "text", f"chunk {number + 1}", x=x, y=48, **{"class": "note"})
            top = middle - len(rows) * _ROW / 2
            parents, heights = heights, {position: top + (row + 0.5) * _ROW for row, position in enumerate(rows)}
            for position in rows:
                y, candidate = candidates[position], candidates[position]
                kind = " answer" if (number, position) in self._answer else ""
                start = middle if candidate.parent is None else parents[candidate.parent]
                _draw_edge(edges, x, start, heights[position], f"edge {candidate.fate}{kind}")
                self._draw_box(svg, y, x, heights[position])

    def _draw_box(self, svg: ET.Element, y: SavedCandidate, x: float, middle: float) -> None:
        box = ET.SubElement(svg, "g", {"class": y.fate})
        _add(box, "title", _description(y))
        _add(box, "rect", x=x, y=middle - _BOX / 2, width=_WIDTH, height=_BOX, rx=6, **{"class": "box"})
        colour = _colour(y.score, self._range)
        _add(box, "circle", cx=x + 15, cy=middle, r=7, fill=colour, **{"class": "swatch"})
        _add(box, "text", _label(y), x=x + 29, y=middle + 4)
        _add(box, "text", _number(y.score), x=x + _WIDTH - 10, y=middle + 4, **{"class": "score"})


def _rows(rounds: Sequence[Sequence[SavedCandidate]]) -> list[list[int]]:
    """The positions of each round's candidates from top to bottom: beside their parents, best first."""
    rows: list[list[int]] = []
    for candidates in rounds:
        above = {position: row for row, position in enumerate(rows[-1])} if rows else {}
        row_of = [-1 if y.parent is None else above[y.parent] for y in candidates]
        rows.append(sorted(range(len(candidates)), key=lambda i: (row_of[i], -candidates[i].rank, i)))
    return rows


def _answer_path(rounds: Sequence[Sequence[SavedCandidate]]) -> Iterator[tuple[int, int]]:
    """(round, position) of the best candidate in the last beam, which is the answer, and of all that it continues."""
    beam = [i for i, y in enumerate(rounds[-1]) if y.fate in ("kept", "finished")]
    position = max(beam, key=lambda i: rounds[-1][i].rank, default=None)
    for number in range(len(rounds) - 1, -1, -1):
        if position is None:
            return
        yield number, position
        position = rounds[number][position].parent


def _draw_edge(edges: ET.Element, x: float, start: float, end: float, kind: str) -> None:
    bend = x - _GAP / 2
    _add(
        edges,
        "path",
        d=f"M {x - _GAP:g} {start:g} C {bend:g} {start:g} {bend:g} {end:g} {x:g} {end:g}",
        **{"class": kind},
    )


def _draw_legend(svg: ET.Element, ends: tuple[float, float], y: float) -> None:
    gradient = ET.SubElement(ET.SubElement(svg, "defs"), "linearGradient", {"id": "scores"})
    for number, colour in enumerate(_CIVIDIS):
        _add(gradient, "stop", **{"offset": f"{number / (len(_CIVIDIS) - 1):.3f}", "stop-color": f"#{colour}"})
    _add(svg, "text", "score", x=_MARGIN, y=y, **{"class": "note"})
    _add(svg, "text", _number(ends[0]), x=_MARGIN + 90, y=y, **{"class": "score"})
    _add(svg, "rect", x=_MARGIN + 98, y=y - 11, width=160, height=14, fill="url(#scores)", **{"class": "swatch"})
    _add(svg, "text", _number(ends[1]), x=_MARGIN + 266, y=y)
    _add(
        svg,
        "text",
        "joined: the beam; bold: the answer; faded: pruned; dashed: equal to another",
        x=_MARGIN,
        y=y + 18,
        **{"class": "note"},
    )


def _score_range(search: SavedSearch) -> tuple[float, float]:
    scores = [y.score for candidates in search.rounds for y in candidates]
    return min(scores), max(scores)


def _colour(score: float, ends: tuple[float, float]) -> str:
    """The colour of a score between the lowest and the highest; the middle one if all are the same."""
    low, high = ends
    low, high, score = low / 2, high / 2, score / 2  # whose difference is finite
    scaled = (score - low) / (high - low) if high > low else 0.5
    index = min(int(scaled * (len(_CIVIDIS) - 1)), len(_CIVIDIS) - 2)
    rest = scaled * (len(_CIVIDIS) - 1) - index
    below, above = (bytes.fromhex(colour) for colour in _CIVIDIS[index : index + 2])
    return "#" + bytes(round(a + (b - a) * rest) for a, b in zip(below, above, strict=True)).hex()


def _label(y: SavedCandidate) -> str:
    """What the candidate adds to its parent's text, as far as there is room."""
    added = y.text[y.offset :]
    if not added and y.finish_reason:
        return "(finished before)" if y.offset else "(nothing)"
    label = ("…" if y.offset else "") + re.sub(r"[\r\n]+", "⏎", added)
    room, shortened = _UNITS, ""
    for character in label:
        room -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if room < 1:
            return shortened + "…"
        shortened += character
    return shortened


def _description(y: SavedCandidate) -> str:
    """All that is known of a candidate."""
    scores = ", ".join(f"{name} {_number(score)}" for name, score in y.scores.items())
    ended = f", finish reason {y.finish_reason}" if y.finish_reason else ""
    text = y.text if len(y.text) <= _TITLE else f"…{y.text[-_TITLE:]}"
    return f"{text}\n\n{y.fate}{ended}; score {_number(y.score)}, rank {_number(y.rank)} ({scores})"


def _number(value: float) -> str:
    return (f"{value:z.2f}" if abs(value) < 1e6 else f"{value:.2e}").replace("-", "−")


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: object) -> None:
    """Appends an element. Characters that XML cannot hold become U+FFFD."""
    values = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in attributes.items()}
    element = ET.SubElement(parent, tag, values)
    element.text = None if text is None else _ILLEGAL.sub("\ufffd", text)
