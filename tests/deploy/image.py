"""Parses a Dockerfile into stages and steps, and runs its RUN steps in a folder: no container engine runs here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
# Folders of the image that the steps name; played, they lie below the test's own folder.
PLACES = ("/opt/w2s", "/src", "/dist", "/var/cache/w2s")


@dataclass(frozen=True)
class Step:
    word: str  # RUN, COPY, …
    value: str  # continuation lines joined


@dataclass
class Stage:
    base: str
    name: str | None
    steps: list[Step] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [step.value for step in self.steps if step.word == word]

    def one(self, word: str) -> str:
        [value] = self.all(word)
        return value

    @property
    def environment(self) -> dict[str, str]:
        return {name: value.strip('"') for name, value in re.findall(r'(\w+)=("[^"]*"|\S+)', " ".join(self.all("ENV")))}


def stages(path: Path = ROOT / "Dockerfile") -> list[Stage]:
    """In order; what stands before the first FROM is left out."""
    found: list[Stage] = []
    with path.open("rb") as file:
        for item in DockerfileParser(fileobj=file).structure:
            word, value = item["instruction"], item["value"]
            if word == "FROM":
                base, _, name = re.fullmatch(r"(\S+)(\s+AS\s+(\S+))?", value, re.I).groups()
                found.append(Stage(base, name))
            elif word != "COMMENT" and found:
                found[-1].steps.append(Step(word, value))
    return found


@dataclass(frozen=True)
class Player:
    """Plays COPY from the build's context and RUN, in folders below `root`, with the build arguments `arguments`."""

    root: Path
    arguments: dict[str, str]

    def place(self, text: str) -> str:
        """`text` with the image's folders where they are here."""
        pattern = "|".join(re.escape(place) for place in PLACES)
        return re.sub(rf"(?<![\w.])({pattern})\b", lambda match: f"{self.root}{match[0]}", text)

    def play(self, stage: Stage) -> None:
        folder = self.root / "src"
        folder.mkdir(exist_ok=True)
        variables = dict(self.arguments)
        for step in stage.steps:
            if step.word == "ARG":
                name, _, default = step.value.partition("=")
                variables.setdefault(name, default)
            elif step.word == "COPY" and not step.value.startswith("--from"):
                *sources, target = step.value.split()
                self._copy(sources, folder / target)
            elif step.word == "RUN" and not step.value.startswith("useradd"):  # which would change this machine
                self._run(re.sub(r"--mount=\S+\s+", "", step.value), folder, variables)

    def _copy(self, sources: list[str], target: Path) -> None:
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, target)

    def _run(self, command: str, folder: Path, variables: dict[str, str]) -> None:
        environment = os.environ | variables
        played = subprocess.run(
            ["sh", "-c", self.place(command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert played.returncode == 0, f"{command}\n{played.stdout[-2000:]}\n{played.stderr[-4000:]}"
