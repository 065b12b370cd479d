"""The playground as a visitor has it: keys, errors, stopping, long and hostile answers."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from typing import Any

import pytest

from server.settings.config import ServerConfig
from tests.server.fake_engine import Block, FakeEngine, answering, hypothesis
from tests.server.playground.conftest import Visiting
from tests.server.playground.engines import saying, searching
from w2s_core.engine.events import ChoiceFinished, Event, RequestFinished, TextCommitted
from w2s_core.errors import OverloadedError, RequestError, UpstreamError
from w2s_core.types import GenerationRequest

pytestmark = pytest.mark.asyncio(loop_scope="session")

SOON = 60  # seconds; only a failing test waits that long
KEY = "sk-secret"
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>&amp;\x00</span><b>bold</b>"


async def test_a_guided_stream_draws_a_tree_whose_path_is_the_answer(visit: Visiting) -> None:
    page = await visit(searching())
    await page.ask_and_wait()
    plain, guided = await page.answers()
    assert plain
    assert guided
    assert await page.page.get_attribute("#lineage", "data-text") == guided
    chunks = await page.page.locator("#lineage .chunk-text").all_text_contents()
    assert "".join(chunks) == guided
    assert int(await page.page.get_attribute("#tree", "data-nodes")) >= int(
        await page.page.get_attribute("#tree", "data-rounds")
    )
    assert await page.text("#tentative-b") == ""


async def test_a_wrong_key_and_then_the_right_one(visit: Visiting) -> None:
    page = await visit(FakeEngine(), config=ServerConfig(api_keys=(KEY,)))
    await page.page.fill("#key-dialog[open] #key", "nonsense")
    await page.page.keyboard.press("Enter")
    await page.page.wait_for_selector("#key-error:not([hidden])")
    assert "Incorrect API key" in await page.text("#key-error")
    assert [await page.page.is_disabled(button) for button in ("#run", "#code-a", "#code-b")] == [True] * 3
    assert await page.text("#key-button") == "API key"
    await page.page.fill("#key", KEY)
    await page.page.keyboard.press("Enter")
    await page.ask_and_wait()
    assert await page.text("#key-button") == "API key ✓"
    assert await page.answers() == ("Hello wörld\n", "Hello wörld\n")
    kept = await page.page.evaluate(
        "[location.href, document.cookie, document.documentElement.outerHTML,"
        " JSON.stringify(localStorage), JSON.stringify(sessionStorage)].join('|')"
    )
    assert KEY not in kept
    await page.page.click("#code-b")
    for language in ("python", "curl"):
        await page.page.click(f"label:has(input[value={language}])")
        code = await page.text("#code-text")
        assert "W2S_API_KEY" in code
        assert KEY not in code


async def test_a_model_that_is_not_there(visit: Visiting) -> None:
    page = await visit(FakeEngine(), "#b.model=nobody")
    await page.ask_and_wait()
    assert await page.answers() == ("Hello wörld\n", "")
    assert "There is no such model" in await page.text("#error-b")
    assert "nobody" in await page.text("#error-b")
    await page.page.select_option("#model-b", "steered")
    await page.ask_and_wait()
    assert await page.answers() == ("Hello wörld\n", "Hello wörld\n")
    assert await page.page.is_hidden("#error-b")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RequestError("That cannot be searched.", "guidance.beam_width"), ("refuses", "guidance.beam_width")),
        (OverloadedError("The queue is full.", retry_after_s=7), ("Too many requests", "queue is full", "in 7 s")),
        (RequestError("`guidance.x` is wrong.", "guidance.x"), ("refuses this request`guidance.x` is wrong.",)),
        (UpstreamError("The provider is down."), ("A provider failed", "provider is down")),
    ],
)
async def test_what_the_server_answers_is_said_plainly(visit: Visiting, error: Exception, said: tuple[str]) -> None:
    page = await visit(FakeEngine([error]))
    await page.ask_and_wait()
    for column in "ab":
        shown = await page.text(f"#error-{column}")
        assert all(part in shown for part in said), shown
        assert shown.count("guidance.") <= 1


async def test_a_stream_that_fails_keeps_what_came(visit: Visiting) -> None:
    page = await visit(FakeEngine([TextCommitted(0, "So far"), UpstreamError("The provider is gone.")]))
    await page.ask_and_wait()
    assert await page.answers() == ("So far", "So far")
    assert "The provider is gone." in await page.text("#error-b")


async def test_a_server_that_cannot_be_reached(visit: Visiting) -> None:
    page = await visit(FakeEngine())
    await page.page.wait_for_selector("#run:not([disabled])")
    await page.page.context.set_offline(True)
    await page.ask_and_wait()
    assert "cannot be reached" in await page.text("#error-a")


async def test_stop_ends_the_search(visit: Visiting) -> None:
    engine = FakeEngine([TextCommitted(0, "Hello"), Block()])
    page = await visit(engine)
    await page.ask()
    for column in "ab":
        await page.page.wait_for_selector(f"#committed-{column}:text-is('Hello')")
    await page.page.click("#stop")
    await page.answered()
    await asyncio.wait_for(engine.idle.wait(), SOON)
    assert len(engine.requests) == 2
    assert await page.answers() == ("Hello", "Hello")
    assert "stopped by you" in await page.text("#stats-b")
    assert await page.page.is_hidden("#error-b")


async def test_a_long_answer_is_shown_whole(visit: Visiting) -> None:
    words = [f"word{number} wörd😀 " for number in range(4000)]
    events = [TextCommitted(0, word, prompt_tokens=3, completion_tokens=i) for i, word in enumerate(words)]
    text = "".join(words)
    page = await visit(
        FakeEngine([*events, ChoiceFinished(0, hypothesis(text), False), RequestFinished(3, 4000, None)])
    )
    await page.ask_and_wait()
    assert await page.answers() == (text, text)
    box = await page.page.evaluate("(box => [box.scrollHeight, box.clientHeight])(document.querySelector('#answer-b'))")
    assert box[0] > box[1] > 0


async def test_markup_in_a_models_text_stays_text(visit: Visiting) -> None:
    page = await visit(saying(HOSTILE))
    await page.ask_and_wait()
    assert await page.answers() == (HOSTILE, HOSTILE)
    assert await page.page.get_attribute("#lineage", "data-text") == HOSTILE
    await page.page.focus("#tree")
    await page.page.keyboard.press("Home")
    await page.page.keyboard.press("Enter")
    box = await page.page.locator("#tree").bounding_box()
    await page.page.hover("#tree", position={"x": 80, "y": 30 + (box["height"] - 44) / 2})
    await page.page.wait_for_selector("#tip:not([hidden])")
    assert HOSTILE in await page.text("#tip")
    assert await page.page.locator("main :is(script, img, b), #tip :is(script, img, b)").count() == 0
    assert await page.page.evaluate("window.hacked") is None


async def test_the_parser_of_events_takes_any_pieces(visit: Visiting) -> None:
    page = await visit(FakeEngine())
    said = [json.dumps({"text": text}) for text in ("a", "wörld 😀", "data: x\n\n", "", "\r")]
    stream = ": a comment\n\n" + "".join(
        f"data: {data}{end * 2}" for data, end in zip(said, ["\n", "\r\n", "\r"] * 2, strict=False)
    )
    stream += "event: other\ndata:one\r\ndata: two\r\n\r\ndata: cut off"
    seeded = random.Random(3)
    for _ in range(50):
        cuts = sorted(seeded.sample(range(1, len(stream)), seeded.randrange(0, 30)))
        pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        parse = """async (pieces) => {
            const { EventParser } = await import(new URL("playground/sse.js", document.baseURI));
            const parser = new EventParser();
            return pieces.flatMap((piece) => parser.push(piece));
        }"""
        assert await page.page.evaluate(parse, pieces) == [*said, "one\ntwo"]


async def test_what_the_best_candidate_says_next_stands_behind_what_was_sent(visit: Visiting) -> None:
    """As text, and marked; it goes when the answer is complete."""

    def script(request: GenerationRequest) -> list[Event | Block]:
        first, *_ = saying(f"Sent.{HOSTILE}").script(request)
        return [replace(first, committed=5), TextCommitted(0, "Sent."), Block()]

    page = await visit(FakeEngine(script))
    await page.ask()
    await page.page.wait_for_selector("#tentative-b:not(:empty)")
    await page.page.wait_for_selector("#committed-b:text-is('Sent.')")
    assert await page.text("#tentative-b") == HOSTILE
    assert await page.page.locator("#answer-b :is(script, img, b)").count() == 0
    assert await page.page.locator("#lineage .sent").all_text_contents() == ["Sent."]
    await page.page.click("#stop")
    await page.answered()
    await page.page.wait_for_selector("#tentative-b:empty", state="attached")


async def test_an_answer_that_ends_without_its_end_is_told(visit: Visiting) -> None:
    page = await visit(FakeEngine(answering))
    cut = 'data: {"choices": [{"index": 0, "delta": {"content": "Half"}}]}\n\ndata: {"choi'
    headers = {"content-type": "text/event-stream"}
    await page.page.route("**/v1/chat/completions", lambda route: route.fulfill(body=cut, headers=headers))
    await page.ask_and_wait()
    assert await page.answers() == ("Half", "Half")
    assert "broke off" in await page.text("#error-b")


def as_stream(*deltas: dict[str, str]) -> dict[str, Any]:
    """A response that streams these deltas."""
    chunks = [json.dumps({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
    body = "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"])
    return {"body": body, "headers": {"content-type": "text/event-stream"}}


async def test_thoughts_are_shown_apart_from_the_answer(visit: Visiting) -> None:
    page = await visit(FakeEngine())
    answer = as_stream({"reasoning_content": "Let me "}, {"reasoning_content": "think."}, {"content": "Yes."})
    await page.page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))
    await page.ask_and_wait()
    assert await page.answers() == ("Yes.", "Yes.")
    assert await page.text("#thoughts-b") == "Let me think."


async def test_a_tree_that_is_too_large_says_so(visit: Visiting) -> None:
    def script(request: GenerationRequest) -> list[Event]:
        first, *rest = saying("Hello").script(request)
        return [first, replace(first, chunk=2, candidates=[], truncated=True), *rest]

    page = await visit(FakeEngine(script))
    await page.ask_and_wait()
    assert await page.page.is_visible("#tree-truncated")
    assert await page.page.get_attribute("#tree", "data-nodes") == "1"


async def test_a_plain_answer_leaves_no_tree_of_another(visit: Visiting) -> None:
    page = await visit(searching())
    await page.ask_and_wait()
    assert await page.page.get_attribute("#tree", "data-nodes") != "0"
    await page.page.select_option("#model-b", "plain")
    await page.ask_and_wait()
    await page.page.wait_for_selector("#tree[data-nodes='0']")
    assert await page.page.get_attribute("#lineage", "data-text") == ""
