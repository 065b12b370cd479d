"""Tells whether a grammar can be used, before anything runs: asks a process that may die of it (`checking`)."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from w2s_core.errors import RequestError, WorkerError
from w2s_core.types import Grammar

LONGEST = 1 << 17  # characters of a grammar
_REMEMBERED = 8 * LONGEST  # characters of all that are remembered
_STOP_TIMEOUT_S = 5.0


class GrammarChecker:
    """For one tokenizer, given as the text of its `tokenizer.json` and its EOS.

    The process starts with the first grammar. Checks queue up behind each other; none takes more processor time than
    `checking.CPU_S`.
    """

    ready = True  # nothing has to be loaded before it can be asked

    def __init__(self, tokenizer_json: str, eos: int | None) -> None:
        self._hello = {"tokenizer_json": tokenizer_json, "eos": [] if eos is None else [eos]}
        self._thread = ThreadPoolExecutor(1, "w2s-grammar")
        self._process: subprocess.Popen[str] | None = None
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def start(self) -> None:
        """Nothing: most servers are never asked for a grammar."""

    async def stop(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            self._process.kill()  # so that nobody waits for an answer
        await asyncio.get_running_loop().run_in_executor(self._thread, self._end)
        self._thread.shutdown()

    async def check(self, grammar: Grammar) -> Grammar:
        """The same, compiled. Raises RequestError, naming its field, for what is malformed, not supported or too
        complex."""
        key = (grammar.kind, grammar.source)
        compiled = self._known.pop(key, None)
        if compiled is None:
            if len(grammar.source) > LONGEST:
                raise RequestError(f"May have at most {LONGEST} characters.", grammar.field)
            compiled = await asyncio.get_running_loop().run_in_executor(self._thread, self._compile, grammar)
        self._known[key] = compiled  # behind all others: the first ones are forgotten first
        while sum(map(len, self._known.values())) > _REMEMBERED:
            self._known.popitem(last=False)
        return replace(grammar, kind="compiled", source=compiled)

    # In the thread.

    def _compile(self, grammar: Grammar) -> str:
        if self._process is None:
            self._begin(grammar.field)
        answer = self._ask({"kind": grammar.kind, "source": grammar.source})
        if answer is None:
            self._end()
            raise RequestError("Too complex to be followed.", grammar.field)
        if "error" in answer:
            raise RequestError(f"Cannot be followed: {answer['error']}", grammar.field)
        return str(answer["compiled"])

    def _begin(self, field: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "w2s_core.structured.checker_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent; this ends with it
        )
        answer = self._ask(self._hello)
        if answer is None or "error" in answer:
            self._end()
            if answer is None:
                raise WorkerError("The process that checks grammars does not start.")
            raise RequestError(f"This model's tokenizer cannot follow a grammar: {answer['error']}", field)

    def _ask(self, question: dict[str, Any]) -> dict[str, str] | None:
        """None where it has died of the question."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError):  # what it did not read any more
                process.communicate(timeout=_STOP_TIMEOUT_S)
