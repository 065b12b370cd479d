"""What the documents tell a reader to run, runs."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Demo

pytestmark = pytest.mark.asyncio(loop_scope="session")
ROOT = Path(__file__).parent.parent.parent


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


async def run(code: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_the_readmes_client(demo: Demo) -> None:
    [code] = blocks("README.md", "python")
    lines = (await run(code.replace("http://127.0.0.1:8000", demo.url))).splitlines()
    assert lines[0].startswith("smollm2: ")
    assert any(line.startswith("smollm2-positive: ") for line in lines)


async def test_the_readmes_curl(demo: Demo) -> None:
    [command] = [b for b in blocks("README.md", "sh") if b.startswith("curl")]
    process = await asyncio.create_subprocess_shell(
        command.replace("http://127.0.0.1:8000", demo.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    events = out.decode().split("\n\n")
    assert events[-2] == "data: [DONE]"
    assert '"score"' in out.decode()


async def test_the_library() -> None:
    [code] = blocks("docs/library.md", "python")
    assert re.search(r"\n-?\d+\.\d nats\n$", await run(code))
