"""Chromium for tests of the playground: Debian's package, driven by Playwright. Without one they skip."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import axe_playwright_python
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from benchmarks.chromium import MISSING, find_chromium

AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
SOON_MS = 120_000  # only a failing test waits that long
WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """A headless browser, for all tests of a process."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip(MISSING)
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=chromium)
        yield started
        await started.close()


class Visit:
    """A visit to a page of ours. It notes each request, and what the page complains about."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.requests: list[str] = []
        self.failures: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.failures.append(str(error)))

    async def text(self, selector: str) -> str:
        return await self.page.text_content(selector) or ""

    async def ask(self) -> None:
        """Presses the one button."""
        await self.page.click("#run:not([disabled])")

    async def answered(self) -> None:
        """Waits until no answer is coming any more, and the last of it is drawn, which is in the next frame."""
        await self.page.wait_for_selector("#run:not([hidden])")
        await self.page.evaluate("new Promise(requestAnimationFrame)")

    async def ask_and_wait(self) -> None:
        await self.ask()
        await self.answered()

    async def answers(self) -> tuple[str, str]:
        """What stands on the left and on the right, as text."""
        return await self.text("#committed-a"), await self.text("#committed-b")

    async def fits(self) -> bool:
        """Whether the page needs no scrolling to the side."""
        fits: bool = await self.page.evaluate(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
        return fits

    async def serious_problems(self) -> list[str]:
        """What axe-core finds serious or critical about the page as it is now (https://github.com/dequelabs/axe-core)."""
        await self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found: dict[str, Any] = await self.page.evaluate("axe.run()")
        return [
            f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
            for violation in found["violations"]
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]

    async def check(self) -> None:
        """Nothing has left the origin, no script has failed, and nothing was held back by the security policy."""
        origin = urlsplit(self.url).netloc
        assert [url for url in self.requests if urlsplit(url).netloc != origin and not url.startswith("data:")] == []
        assert self.failures == []
        assert await self.page.evaluate("window.violations") == []


@asynccontextmanager
async def visiting(browser: Browser, url: str, **options: Any) -> AsyncIterator[Visit]:
    """Opens the address in a fresh context, and checks at the end that it behaved."""
    context = await browser.new_context(**({"viewport": {"width": 1360, "height": 1000}} | options))
    try:
        context.set_default_timeout(SOON_MS)
        await context.add_init_script(WATCH)
        visit = Visit(await context.new_page(), url)
        await visit.page.goto(url)
        yield visit
        await visit.check()
    finally:
        await context.close()
