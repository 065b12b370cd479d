"""What a visitor sets and points at: settings, links, the keyboard and the pointer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from server.settings.config import ServerConfig
from tests.server.fake_engine import MODELS, STEERED, Block, FakeEngine, FakeServedModel
from tests.server.playground.conftest import Visiting
from tests.server.playground.engines import saying, searching
from w2s_core.engine.events import Event
from w2s_core.types import GenerationRequest

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_settings_become_the_request(visit: Visiting) -> None:
    engine = FakeEngine()
    page = await visit(engine)
    await page.page.click("section:has(#title-b) summary")
    for name, value in {"pairs-positive": "-1.5", "beam_width": "3", "fluency": "0.25", "temperature": "0.4"}.items():
        await page.page.fill(f"#b-{name}", value)
    await page.page.check("#b-early_stopping")
    assert "W 3 · K 4 · L 5 · positive −1.5" in await page.text("#summary-b")
    assert "12 rows" in await page.text("#cost-b")
    await page.page.fill("#max-tokens", "9")
    await page.page.fill("#seed", "42")
    await page.page.click("label:has(input[value=completion])")
    await page.page.fill("#prompt", "Once 😀 \"quoted\" & 'so'")
    await page.ask_and_wait()
    plain, guided = sorted(engine.requests, key=lambda request: request.model)
    assert (plain.model, plain.guidance) == ("plain", None)
    assert (guided.sampling.max_tokens, guided.sampling.seed, guided.sampling.temperature) == (9, 42, 0.4)
    assert guided.prompts[0].text == "Once 😀 \"quoted\" & 'so'"
    assert guided.guidance.pairs == {"positive": -1.5}
    assert (guided.guidance.beam_width, guided.guidance.fluency, guided.guidance.early_stopping) == (3, 0.25, True)
    assert guided.guidance.trace == "stream"
    link = await page.page.evaluate("location.hash")
    again = await visit(engine, link)
    await again.ask_and_wait()
    assert sorted(engine.requests[2:], key=lambda request: request.model) == [plain, guided]


async def test_a_weight_guides_a_plain_model_and_none_makes_a_guided_one_plain(visit: Visiting) -> None:
    engine = FakeEngine()
    page = await visit(engine, "#a.pairs.positive=2&b.method=none")
    await page.ask_and_wait()
    assert [await page.text(f"#title-{column}") for column in "ab"] == ["Guided", "Plain"]
    one, other = sorted(engine.requests, key=lambda request: request.model)
    assert one.guidance.pairs == {"positive": 2.0}
    assert other.guidance.method == "none"


async def test_two_searches_have_a_tree_each(visit: Visiting) -> None:
    page = await visit(searching(), "#a.model=guided&b.beam_width=2&a.chunk_length=3")
    await page.ask_and_wait()
    left, right = await page.answers()
    assert await page.page.get_attribute("#lineage", "data-text") == right
    await page.page.click("#tree-tabs label:has(input[value=a])")
    assert await page.page.get_attribute("#lineage", "data-text") == left


async def test_a_link_never_has_a_key_and_nonsense_in_it_is_left_out(visit: Visiting) -> None:
    nonsense = "#mode=dance&seed=x&b.beam_width=y&b.successors=&b.nothing=1&c.model=z&__proto__=1&b.__proto__=2"
    key = "sk-secret"
    config = ServerConfig(api_keys=(key,))
    page = await visit(searching(), nonsense, config=config, permissions=["clipboard-read", "clipboard-write"])
    await page.page.fill("#key-dialog[open] #key", key)
    await page.page.keyboard.press("Enter")
    await page.ask_and_wait()
    assert all(await page.answers())
    await page.page.click("#share")
    await page.page.wait_for_selector("#share:text-is('Copied')")
    for link in (await page.page.evaluate("navigator.clipboard.readText()"), page.page.url):
        assert "prompt=How+was+the+movie" in link
        assert not [word for word in (key, "dance", "nothing", "beam_width", "successors") if word in link]


async def test_what_is_left_empty_is_the_served_models_own_also_behind_a_link(visit: Visiting) -> None:
    """As in the API, where null means "not given"."""
    capped = FakeServedModel("steered", guidance=replace(STEERED, max_sampled_tokens=100))
    engine = FakeEngine(served_models={"plain": MODELS["plain"], "steered": capped})
    page = await visit(engine)
    await page.page.click("section:has(#title-b) summary")
    assert await page.page.input_value("#b-max_sampled_tokens") == "100"
    for value in ("9", ""):
        await page.page.fill("#b-max_sampled_tokens", value)
        await page.page.fill("#b-beam_width", value)
    assert await page.page.get_attribute("#b-max_sampled_tokens", "placeholder") == "100"
    assert "W 4" in await page.text("#summary-b")
    await page.page.fill("#max-tokens", "")
    await page.page.fill("#seed", "7")
    await page.ask_and_wait()
    again = await visit(engine, await page.page.evaluate("location.hash"))
    assert await again.page.input_value("#max-tokens") == ""
    await again.ask_and_wait()
    first, second = (sorted(engine.requests[at : at + 2], key=lambda request: request.model) for at in (0, 2))
    assert first == second
    assert [(request.sampling.max_tokens, request.sampling.seed) for request in first] == [(None, 7)] * 2
    assert (first[1].guidance.max_sampled_tokens, first[1].guidance.beam_width) == (100, 4)


async def test_a_search_that_cannot_be_has_no_cost(visit: Visiting) -> None:
    page = await visit(FakeEngine())
    await page.page.click("section:has(#title-b) summary")
    for width, successors, cost in (("-3", "4", None), ("-3", "-4", None), ("2.5", "4", None), ("3", "4", "12 rows")):
        await page.page.fill("#b-beam_width", width)
        await page.page.fill("#b-successors", successors)
        shown = await page.text("#cost-b")
        assert shown == (f"Cost: {cost} at once" if cost else "W and K must be whole numbers above 0")


async def test_early_rejection_is_for_best_of_n_alone(visit: Visiting) -> None:
    engine = FakeEngine()
    page = await visit(engine, "#b.model=best")
    await page.page.click("section:has(#title-b) summary")
    await page.page.fill("#b-early_rejection", "0.25")
    await page.ask_and_wait()
    await page.page.focus("#b-method")
    await page.page.select_option("#b-method", "cbs")
    assert await page.page.locator("#b-early_rejection").count() == 0
    assert await page.page.evaluate("document.activeElement.id") == "b-method"
    await page.ask_and_wait()
    asked = [request.guidance for request in engine.requests if request.model == "best"]
    assert [(guidance.method, guidance.early_rejection) for guidance in asked] == [("best_of_n", 0.25), ("cbs", 0)]


async def test_another_model_steers_as_itself_and_other_settings_stay(visit: Visiting) -> None:
    engine = FakeEngine()
    page = await visit(engine, "#b.pairs.positive=-2&b.method=eft&b.chunk_length=7&b.temperature=0.5")
    assert "positive −2" in await page.text("#summary-b")
    await page.page.select_option("#model-b", "plain")
    assert await page.text("#title-b") == "Plain"
    await page.page.select_option("#model-b", "best")
    assert await page.text("#summary-b") == "best of 8 · positive 1"
    await page.ask_and_wait()
    (guided,) = [request for request in engine.requests if request.model == "best"]
    assert (guided.guidance.method, guided.guidance.pairs) == ("best_of_n", {"positive": 1.0})
    assert (guided.guidance.chunk_length, guided.sampling.temperature) == (7, 0.5)


async def test_a_search_of_many_chunks_that_is_stopped_shows_its_lineage_to_the_end(visit: Visiting) -> None:
    """The lineage of a growing tree is written less often when it is long; when nothing comes any more, once again."""
    count = 140

    def script(request: GenerationRequest) -> list[Event | Block]:
        [first, *_] = saying("x").script(request)
        parents = [None, *[0] * (count - 1)]
        nodes = [
            replace(first.candidates[0], parent=parent, offset=number, finish_reason=None, fate="kept")
            for number, parent in enumerate(parents)
        ]
        return [*(replace(first, chunk=i + 1, candidates=[node]) for i, node in enumerate(nodes)), Block()]

    page = await visit(FakeEngine(script))
    await page.ask()
    await page.page.wait_for_selector(f"#tree[data-rounds='{count}']")
    await page.page.click("#stop")
    await page.answered()
    assert await page.page.get_attribute("#lineage", "data-text") == "x" * count


async def test_what_is_copied_is_the_answer_shown_or_the_settings_now(visit: Visiting) -> None:
    page = await visit(FakeEngine())

    async def copied() -> tuple[str, dict[str, Any]]:
        code = await page.text("#code-text")
        body = code[code.index("-d '") + 4 : -1]
        return await page.text("#code-title"), json.loads(body)

    await page.page.click("#code-b")
    title, body = await copied()
    assert title == "The request with the settings as they are now (guided, steered)"
    assert await page.page.is_hidden("#code-of")
    await page.page.click("#code-close")
    await page.ask_and_wait()
    await page.page.click("#code-b")
    assert await copied() == ("The request of the answer shown (guided, steered)", body)
    assert await page.page.is_hidden("#code-of")
    await page.page.click("#code-close")
    assert await page.page.is_hidden("#changed-b")
    await page.page.fill("#seed", "5")
    assert await page.page.is_visible("#changed-a")
    await page.page.select_option("#model-b", "plain")
    assert await page.page.is_visible("#changed-b")
    await page.page.click("#code-b")
    assert await copied() == ("The request of the answer shown (guided, steered)", body)
    await page.page.click("#code-of label:has(input[value=now])")
    now = {**body, "model": "plain", "seed": 5}
    assert await copied() == ("The request with the settings as they are now (plain, plain)", now)
    await page.page.click("#code-close")
    await page.ask_and_wait()
    assert await page.page.is_hidden("#changed-b")


@pytest.mark.parametrize(("link", "said"), [("", False), ("#b.fluency=0.3", True)])
async def test_where_ranks_are_not_scores_the_page_says_so(visit: Visiting, link: str, said: bool) -> None:
    page = await visit(searching(), link)
    await page.ask_and_wait()
    assert await page.page.is_visible("#tree-ranked") == said


async def test_scores_are_written_for_people(visit: Visiting) -> None:
    page = await visit(FakeEngine())
    written = """async (values) => {
        const { nats } = await import(new URL("playground/dom.js", document.baseURI));
        return values.map(nats);
    }"""
    values = {3.14159: "3.14", -0.5: "−0.50", 12.3: "12.30", 1234: "1,234", -1234.6: "−1,235", -0.001: "0.00"}
    assert await page.page.evaluate(written, [*values, None]) == [*values.values(), "–"]


async def test_both_answers_are_announced(visit: Visiting) -> None:
    """Each in its own region, so that none takes the other's place before it is read."""
    page = await visit(FakeEngine())
    await page.ask_and_wait()
    assert [await page.text(f"#news-{column}[role=status]") for column in "ab"] == [
        "Plain answer: Hello wörld\n",
        "Guided answer: Hello wörld\n",
    ]


async def test_the_keyboard_walks_through_the_tree(visit: Visiting) -> None:
    page = await visit(searching())
    await page.ask_and_wait()
    _, guided = await page.answers()
    await page.page.focus("#tree")
    heard = []
    for key in ("End", "ArrowLeft", "ArrowRight", "Home", "ArrowDown", "ArrowUp"):
        await page.page.keyboard.press(key)
        heard.append(await page.text("#news"))
    assert heard[3].startswith("Chunk 1, candidate ")
    assert all("score" in said for said in heard)
    await page.page.keyboard.press("ArrowDown")
    await page.page.keyboard.press("Enter")
    assert await page.page.get_attribute("#lineage", "data-text") != guided
    await page.page.keyboard.press("Escape")
    assert await page.page.get_attribute("#lineage", "data-text") == guided


async def test_the_keyboard_zooms_as_the_buttons_do(visit: Visiting) -> None:
    page = await visit(searching())
    await page.ask_and_wait()
    picture = """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(
        () => done(document.querySelector("#tree-canvas").toDataURL()))))"""

    async def pressed(key: str) -> str:
        await page.page.focus("#tree")
        await page.page.keyboard.press(key)
        return str(await page.page.evaluate(picture))

    async def clicked(button: str) -> str:
        await page.page.click(button)
        return str(await page.page.evaluate(picture))

    fitted = await clicked("#zoom-fit")
    larger = await clicked("#zoom-in")
    assert await clicked("#zoom-fit") == fitted
    smaller = await clicked("#zoom-out")
    assert len({fitted, larger, smaller}) == 3
    assert await pressed("0") == fitted
    assert await pressed("+") == larger
    await pressed("0")
    assert await pressed("=") == larger
    await pressed("0")
    assert await pressed("-") == smaller


async def test_a_click_follows_and_a_drag_moves(visit: Visiting) -> None:
    page = await visit(saying("Only this."))
    await page.ask_and_wait()
    middle = await page.page.evaluate("document.querySelector('#tree').clientHeight / 2 + 8")
    await page.page.click("#tree", position={"x": 76, "y": middle})
    await page.page.wait_for_selector("#lineage-back:not([hidden])")
    box = await page.page.locator("#tree").bounding_box()
    await page.page.mouse.move(box["x"] + 300, box["y"] + 100)
    await page.page.mouse.down()
    await page.page.mouse.move(box["x"] + 420, box["y"] + 100, steps=4)
    await page.page.mouse.up()
    await page.page.hover("#tree", position={"x": 76, "y": middle})
    assert await page.page.is_hidden("#tip")
    await page.page.hover("#tree", position={"x": 76 + 120, "y": middle})
    await page.page.wait_for_selector("#tip:not([hidden])")


async def test_code_and_link_reach_the_clipboard(visit: Visiting) -> None:
    page = await visit(searching(), permissions=["clipboard-read", "clipboard-write"])
    await page.ask_and_wait()
    await page.page.click("#code-b")
    await page.page.click("#code-copy:text-is('Copy')")
    await page.page.wait_for_selector("#code-copy:text-is('Copied')")
    assert await page.page.evaluate("navigator.clipboard.readText()") == await page.text("#code-text")
    await page.page.click("#code-close")
    await page.page.click("#share")
    await page.page.wait_for_selector("#share:text-is('Copied')")
    assert await page.page.evaluate("navigator.clipboard.readText()") == page.page.url


@pytest.mark.parametrize("link", ["#b.chunk_length=0", "#max_tokens=Infinity", "#b.chunk_length=0.0000001"])
async def test_no_link_freezes_the_page(visit: Visiting, link: str) -> None:
    page = await visit(searching(), link)
    await page.ask_and_wait()
    assert await page.page.evaluate("1 + 1") == 2


async def test_weights_stay_as_they_are_set(visit: Visiting) -> None:
    engine = FakeEngine(scorer_keys={"positive": "pairs", "polite": "pairs"})
    page = await visit(engine)
    await page.page.click("section:has(#title-b) summary")
    await page.page.fill("#b-pairs-positive", "0")
    assert await page.text("#title-b") == "Plain", "nothing steers"
    assert await page.page.input_value("#b-method") == "none"
    await page.page.fill("#b-pairs-polite", "2")
    assert await page.page.input_value("#b-method") == "cbs"
    await page.ask_and_wait()
    (guided,) = [request for request in engine.requests if request.guidance is not None]
    assert guided.guidance.pairs == {"polite": 2.0}


async def test_a_plain_model_without_weights_stays_plain(visit: Visiting) -> None:
    engine = FakeEngine()
    page = await visit(engine, "#a.beam_width=3&b.pairs=")
    await page.page.fill("#max-tokens", "")
    await page.ask_and_wait()
    assert [await page.text(f"#title-{column}") for column in "ab"] == ["Plain", "Plain"]
    assert [request.guidance.method for request in engine.requests] == ["none", "none"]
    assert all(request.sampling.max_tokens != 0 for request in engine.requests)


async def test_a_chunk_of_the_lineage_that_was_followed_keeps_the_focus(visit: Visiting) -> None:
    page = await visit(searching())
    await page.ask_and_wait()
    await page.page.focus("#lineage li:nth-child(1) button")
    await page.page.keyboard.press("Enter")
    await page.page.wait_for_selector("#lineage-back:not([hidden])")
    assert await page.page.evaluate("document.activeElement.className") == "chunk"
