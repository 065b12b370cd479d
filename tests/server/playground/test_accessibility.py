"""The page for everyone and everywhere: axe-core in both themes, narrow screens, a path prefix, the size of a load."""

from __future__ import annotations

import pytest

from server.settings.config import ServerConfig
from tests.server.fake_engine import FakeEngine
from tests.server.playground.conftest import Visiting
from tests.server.playground.engines import searching
from w2s_core.errors import RequestError

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = "sk-secret"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1360, 390])
async def test_axe_finds_no_serious_violation(visit: Visiting, scheme: str, width: int) -> None:
    viewport = {"width": width, "height": 900}
    link = "#b.model=guided&a.model=a-model-with-a-long-name-that-nobody-serves"
    page = await visit(searching(), link, color_scheme=scheme, viewport=viewport, bypass_csp=True)
    assert await page.serious_problems() == []
    await page.ask_and_wait()
    for column in "ab":
        await page.page.click(f"section:has(#title-{column}) summary")
    assert await page.serious_problems() == []
    assert await page.fits()
    await page.page.click("#code-b")
    assert await page.serious_problems() == []


async def test_axe_finds_no_serious_violation_in_errors_and_the_keys_dialog(visit: Visiting) -> None:
    page = await visit(
        FakeEngine([RequestError("No.", None)]),
        config=ServerConfig(api_keys=(KEY,)),
        bypass_csp=True,
        viewport={"width": 390, "height": 800},
    )
    await page.page.fill("#key-dialog[open] #key", "nonsense")
    await page.page.keyboard.press("Enter")
    await page.page.wait_for_selector("#key-error:not([hidden])")
    assert await page.serious_problems() == []
    await page.page.fill("#key", KEY)
    await page.page.keyboard.press("Enter")
    await page.ask_and_wait()
    assert await page.serious_problems() == []
    assert await page.fits()


async def test_it_works_behind_a_path_prefix(visit: Visiting) -> None:
    page = await visit(searching(), prefix="/models/w2s")
    await page.ask_and_wait()
    assert all(await page.answers())
    assert all("/models/w2s/" in request for request in page.requests if not request.startswith("data:"))
    await page.page.click("#code-b")
    assert "/models/w2s/v1/chat/completions" in await page.text("#code-text")
    await page.page.click("#code-close")
    await page.page.click("a:text-is('API')")
    await page.page.wait_for_selector("[data-path='/v1/chat/completions']")
    assert all("/models/w2s/" in request for request in page.requests if not request.startswith("data:"))
    await page.page.go_back()


async def test_the_first_load_is_under_300_kb(visit: Visiting) -> None:
    page = await visit(FakeEngine())
    await page.page.wait_for_selector("#run:not([disabled])")
    sizes = "performance.getEntries().filter(e => e.transferSize).map(e => e.transferSize)"
    loaded = await page.page.evaluate(sizes)
    assert len(loaded) > 15
    assert sum(loaded) < 300_000
