"""The playground over the demo's models: what a newcomer sees, and that its code reproduces it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.browser import Visit, browser, visiting
from tests.e2e.conftest import Demo

__all__ = ["browser"]
pytestmark = pytest.mark.asyncio(loop_scope="session")


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


async def test_the_copied_code_gives_the_same_answers(visit: Visit, tmp_path: Path) -> None:
    await visit.page.fill("#prompt", "It's a film's \"end\" that ... $HOME `id` 😀")
    await visit.page.fill("#max-tokens", "12")
    await visit.page.fill("#seed", "5")
    for mode in ("chat", "completion"):
        await visit.page.click(f"label:has(input[value={mode}])")
        await visit.ask_and_wait()
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


async def test_stop_stops_the_search_in_the_worker(demo: Demo, visit: Visit) -> None:
    """A search of a thousand tokens that is stopped after its first round gives back what it held, and runs no more."""
    await visit.page.fill("#max-tokens", "1000")
    await visit.ask()
    await visit.page.wait_for_selector("#tree[data-rounds]:not([data-rounds='0'])")
    assert demo.engine.admission.rows_running > 0
    await visit.page.click("#stop")
    await visit.answered()
    while demo.engine.admission.rows_running:
        await asyncio.sleep(0.01)
    await demo.assert_nothing_is_held()
    async with httpx.AsyncClient(base_url=demo.url) as client:
        metrics = (await client.get("/metrics")).text
    cancelled = [line for line in metrics.splitlines() if line.startswith("w2s_requests_total{") and "cancel" in line]
    assert cancelled
    assert "stopped by you" in await visit.text("#stats-b")
