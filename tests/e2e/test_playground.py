"""The playground over the demo's models: what a newcomer sees, and that its code reproduces it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.browser import Visit, browser, visiting
from tests.e2e.conftest import Demo

__all__ = ["browser"]
pytestmark = pytest.mark.asyncio(loop_scope="session")

SOON = 120  # seconds; only a failing test waits that long


@pytest_asyncio.fixture(loop_scope="session")
async def visit(demo: Demo, browser: Browser) -> AsyncIterator[Visit]:
    async with visiting(browser, f"{demo.url}/playground") as page:
        yield page


async def output_of(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": ""}
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_one_button_shows_both_answers_and_the_tree(demo: Demo, visit: Visit) -> None:
    """With what is filled in, and the tree's path is the guided answer."""
    await visit.ask_and_wait()
    plain, guided = await visit.answers()
    assert plain
    assert guided
    assert plain != guided
    assert [await visit.page.input_value(f"#model-{column}") for column in "ab"] == ["smollm2", "smollm2-positive"]
    assert await visit.page.get_attribute("#lineage", "data-text") == guided
    rounds, nodes = [int(await visit.page.get_attribute("#tree", f"data-{what}") or 0) for what in ("rounds", "nodes")]
    assert 2 <= rounds <= 8
    assert nodes >= rounds * 8 - 8
    assert re.search(r"rows8tokens\d+ sampled, \d+ returned.*score", await visit.text("#stats-b"))
    await demo.assert_nothing_is_held()


async def change_settings(visit: Visit) -> None:
    await visit.page.fill("#a-temperature", "0.3")
    await visit.page.fill("#b-temperature", "0.9")
    settings = {"pairs-positive": "-0.5", "beam_width": "3", "successors": "2", "chunk_length": "4"}
    settings |= {"repetition": "0.7", "fluency": "0.05", "length_penalty": "0.5", "max_sampled_tokens": "60"}
    for name, value in settings.items():
        await visit.page.fill(f"#b-{name}", value)
    await visit.page.check("#b-early_stopping")


async def test_the_copied_code_gives_the_same_answers(visit: Visit, tmp_path: Path) -> None:
    await visit.page.fill("#prompt", "It's a film's \"end\" that ... $HOME `id` 😀")
    await visit.page.fill("#max-tokens", "12")
    await visit.page.fill("#seed", "5")
    for column in "ab":
        await visit.page.click(f"section:has(#title-{column}) summary")
    for mode in ("chat", "completion"):
        await visit.page.click(f"label:has(input[value={mode}])")
        if mode == "completion":  # by then with settings of every sort
            await change_settings(visit)
        await visit.ask_and_wait()
        await visit.page.fill("#b-successors", "9")  # which the answer that is shown was not asked by
        answers = dict(zip("ab", await visit.answers(), strict=True))
        for column, answer in answers.items():
            await visit.page.click(f"#code-{column}")
            await visit.page.click("label:has(input[value=curl])")
            response: Any = json.loads(await output_of("sh", "-c", f"{await visit.text('#code-text')} --silent"))
            [choice] = response["choices"]
            assert (choice["message"]["content"] if mode == "chat" else choice["text"]) == answer
            await visit.page.click("label:has(input[value=python])")
            (tmp_path / "copied.py").write_text(await visit.text("#code-text"), encoding="utf-8")
            assert await output_of(sys.executable, str(tmp_path / "copied.py")) == f"{answer}\n"
            await visit.page.click("#code-close")


async def test_the_copied_code_can_bring_the_tree(visit: Visit) -> None:
    await visit.page.fill("#max-tokens", "10")
    await visit.ask_and_wait()
    await visit.page.click("#code-b")
    await visit.page.check("#code-tree")
    response = json.loads(await output_of("sh", "-c", f"{await visit.text('#code-text')} --silent"))
    [tree] = response["guidance"]["tree"]
    [content] = [choice["message"]["content"] for choice in response["choices"]]
    assert content in [candidate["text"] for candidate in tree[-1] if candidate["kept"]]


class EndedRequests(logging.Handler):
    """The request log's entries, one by one, each when its request has ended."""

    def __init__(self) -> None:
        super().__init__()
        self._entries: asyncio.Queue[Any] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._entries.put_nowait(record.msg)

    async def of(self, *models: str) -> dict[str, dict[str, Any]]:
        """The next entry of a request to each of these models, by the model, in whatever order they end."""
        found: dict[str, dict[str, Any]] = {}
        while not found.keys() >= set(models):
            entry = await self._entries.get()
            found[entry.get("served_model")] = entry
        return found


@pytest.fixture
def ended(caplog: pytest.LogCaptureFixture) -> Iterator[EndedRequests]:
    log = logging.getLogger("w2s.request")
    caplog.set_level(logging.INFO, log.name)
    handler = EndedRequests()
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


async def test_stop_stops_the_search_in_the_worker(demo: Demo, visit: Visit, ended: EndedRequests) -> None:
    """A search of a thousand tokens that is stopped after its first round ends as cancelled, long before it is done.

    The worker has no job of it any more, and no KV.
    """
    await visit.page.fill("#max-tokens", "1000")
    await visit.ask()
    await visit.page.wait_for_selector("#tree[data-rounds]:not([data-rounds='0'])")
    assert demo.engine.admission.rows_running > 0
    await visit.page.click("#stop")
    await visit.answered()
    entries = await asyncio.wait_for(ended.of("smollm2", "smollm2-positive"), SOON)
    assert entries["smollm2-positive"]["outcome"] == "cancelled"
    assert entries["smollm2-positive"]["chunks"] < 100
    await demo.assert_nothing_is_held()
    assert "stopped by you" in await visit.text("#stats-b")
