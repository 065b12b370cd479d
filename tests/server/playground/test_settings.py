"""What a visitor sets and points at: settings, links, the keyboard and the pointer."""

from __future__ import annotations

import pytest

from tests.server.fake_engine import FakeEngine
from tests.server.playground.conftest import Visiting
from tests.server.playground.engines import saying, searching

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
    page = await visit(searching(), "#mode=dance&seed=x&b.beam_width=y&b.nothing=1&c.model=z&__proto__=1&b.__proto__=2")
    await page.ask_and_wait()
    assert all(await page.answers())
    link = await page.page.evaluate("location.hash")
    assert "dance" not in link
    assert "nothing" not in link


async def test_the_keyboard_walks_through_the_tree(visit: Visiting) -> None:
    page = await visit(searching())
    await page.ask_and_wait()
    _, guided = await page.answers()
    await page.page.focus("#tree")
    heard = []
    for key in ("End", "ArrowLeft", "ArrowRight", "Home", "ArrowDown", "ArrowUp", "+", "-", "0"):
        await page.page.keyboard.press(key)
        heard.append(await page.text("#announcer"))
    assert heard[3].startswith("Chunk 1, candidate ")
    assert all("score" in said for said in heard)
    await page.page.keyboard.press("ArrowDown")
    await page.page.keyboard.press("Enter")
    assert await page.page.get_attribute("#lineage", "data-text") != guided
    await page.page.keyboard.press("Escape")
    assert await page.page.get_attribute("#lineage", "data-text") == guided


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
