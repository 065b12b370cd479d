"""The page: whole, of one file, and with everything that models wrote as text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tests.judges.answers import evaluation
from w2s_core.evaluation.metrics import Estimate
from w2s_core.evaluation.records import EvalPrompt
from w2s_core.judges.cost_chart import Point, cost_chart
from w2s_core.judges.judging import Judgement
from w2s_core.judges.page import write_page
from w2s_core.judges.win_rates import findings

ATTACK = "</div><script>alert('x')</script><img src=https://evil.example/?{{ 7 * 7 }}>&amp;"


class Elements(HTMLParser):
    """The page's elements by name, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page in which everything that comes from outside attacks it."""
    tmp_path = tmp_path_factory.mktemp("page")
    name, judge = f"ours {ATTACK}", f"judge {ATTACK}"
    answers = {"base": {("p", 0): ATTACK, ("q", 0): "b"}, name: {("p", 0): f"{ATTACK} longer"}}
    prompts = [EvalPrompt("p", (ATTACK,), group=ATTACK), EvalPrompt("q", ("Q?",))]
    every = evaluation(tmp_path, answers, prompts, system=ATTACK)
    judgements = [
        Judgement(judge, name, "p", 0, 1.0, "", (f"said {ATTACK}", "[[B]]"), ""),
        Judgement(judge, name, "q", 0, None, ATTACK, (), ""),
    ]
    scores = [Judgement("words", c, "p", 0, score, "", (), "") for c, score in (("base", 0.25), (name, 0.5))]
    found = [findings(every, judge, True, judgements), findings(every, "words", False, scores)]
    path = write_page(every, found, [*judgements, *scores])
    assert path == tmp_path / "report.html"
    return path.read_text(encoding="utf-8")


def test_nothing_that_a_model_wrote_becomes_html(page: str) -> None:
    elements = Elements(page)
    assert not {"script", "img", "iframe", "object", "link", "base", "form"} & set(elements.names)
    assert not [key for key, _ in elements.attributes if key.startswith("on")]
    assert elements.text.count(ATTACK) >= 10, "it is all there, as text"
    assert "49" not in re.findall(r"evil.example/\?(\S+)>", elements.text), "no template either"


def test_the_page_needs_nothing_else(page: str) -> None:
    loaded = [value for key, value in Elements(page).attributes if key in ("src", "srcset", "data", "action")]
    assert not loaded
    assert not re.findall(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page


def test_the_page_shows_rates_answers_and_verdicts(page: str) -> None:
    elements = Elements(page)
    assert elements.names.count("svg") == 2, "a chart for each judge"
    assert elements.names.count("details") == 2 + 1, "the prompts, and what the judge wrote"
    text = " ".join(elements.text.split())
    assert "won" in text
    assert "said </div>" in text
    assert "words: 0.5" in text
    assert "1 judgement has no value" in text
    assert "no answer" in text, "to q, by ours"


def test_the_chart_takes_the_colour_of_the_page_and_is_always_the_same() -> None:
    points = [
        Point(Estimate(40, 40, 40), None, "#8a94a0"),
        Point(Estimate(320, 300, 330), Estimate(0.7, 0.6, 0.8), "#d1495b"),
    ]
    chart = cost_chart(points)
    assert chart == cost_chart(points)
    assert "currentColor" in chart
    assert "#d1495b" in chart
    assert chart.startswith("<svg")
