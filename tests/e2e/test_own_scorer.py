"""The page about scorers of one's own: its module, its configuration and its client, as a reader would try them."""

from __future__ import annotations

import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

from tests.e2e.test_documents import blocks
from tests.replica import ROOT, served

PAGE = "docs/scorers.md"
ANSWER = re.compile(r"[\w-]+:(.*?)(?: \{.*'plain_words': (-?[\d.]+)\}\})? ?")
RUN = "import os, sys; os.chdir(sys.argv.pop(1)); from server.cli import main; main()"


def long_words(text: str) -> int:
    return sum(len(word) > 6 for word in text.split())


def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    [module, client] = blocks(PAGE, "python")
    [config] = blocks(PAGE, "yaml")
    [printed] = re.findall(r"it prints\n\n```\n(.*?)```", (ROOT / PAGE).read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "plain_words.py").write_text(module, encoding="utf-8")
    (tmp_path / "my.yaml").write_text(config, encoding="utf-8")
    command = [sys.executable, "-c", RUN, str(tmp_path), "serve", "--config", "my.yaml", "--port", "0"]
    variables = {"PYTHONPATH": str(ROOT), "W2S_WORKERS__DTYPE": "float32", "W2S_WORKERS__THREADS": "1"}
    with served(command, variables, within=300) as server:
        script = [sys.executable, "-c", client.replace("http://127.0.0.1:8000", server.url)]
        lines = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines == printed.splitlines(), "seeded and in float32, so the page's answers come out"
    plain, guided = (ANSWER.fullmatch(line) for line in lines)
    assert plain is not None
    assert guided is not None
    assert float(guided[2]) == -long_words(literal_eval(guided[1]))
    assert long_words(literal_eval(guided[1])) < long_words(literal_eval(plain[1]))
