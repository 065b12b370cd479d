"""Makes the README's pictures of the playground (`make screenshots`): the demo's models, in both themes.

The server is the command's own, so the pictures show what a visitor of `make serve` sees after pressing the button.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from benchmarks.chromium import MISSING, find_chromium
from tests.replica import ROOT, served

PICTURES = ROOT / "docs" / "images"
COMMAND = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--port", "0"]
SIZE = {"width": 1280, "height": 1200}
WITHIN = 300  # seconds, for models that must be fetched first


def take(browser: Browser, url: str, scheme: str, path: Path) -> None:
    """Writes one picture: the prompt that is filled in, both answers, and the whole tree."""
    page = browser.new_page(viewport=SIZE, color_scheme=scheme)
    page.goto(f"{url}/playground")
    page.click("#run:not([disabled])")
    page.wait_for_selector("#run:not([hidden])", timeout=WITHIN * 1000)
    page.evaluate("document.activeElement.blur()")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    plot = page.locator("#plot-canvas").bounding_box()
    assert plot is not None
    area = {"x": 0, "y": 0, "width": SIZE["width"], "height": plot["y"] + plot["height"] + 7}
    picture = Image.open(io.BytesIO(page.screenshot(clip=area)))
    picture.convert("RGB").save(path, optimize=True)
    page.close()


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=PICTURES, show_default=True)
def main(folder: Path) -> None:
    """Make playground-light.png and playground-dark.png."""
    chromium = find_chromium()
    if chromium is None:
        raise click.ClickException(MISSING)
    variables = {"PYTHONPATH": str(ROOT), "W2S_WORKERS__DTYPE": "float32", "W2S_WORKERS__THREADS": "1"}
    with served(COMMAND, variables, within=WITHIN) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        for scheme in ("light", "dark"):
            path = folder / f"playground-{scheme}.png"
            take(browser, server.url, scheme, path)
            click.echo(f"{path} ({path.stat().st_size / 1000:.0f} kB)")
        browser.close()


if __name__ == "__main__":
    main()
