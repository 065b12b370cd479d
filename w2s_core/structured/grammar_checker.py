"""Checks and compiles grammars before a request runs, in a separate process, so that a bad grammar cannot crash the
server or a worker."""

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

MAX_LENGTH = 1 << 17  # characters of a grammar
_CACHE_SIZE = 8 * MAX_LENGTH  # characters of all compiled grammars that are cached
_STOP_TIMEOUT_S = 5.0


class GrammarChecker:
    """Checks grammars for one tokenizer, given as the text of its `tokenizer.json` and its EOS.

    The process starts with the first grammar. Checks run one after another; none takes more processor time than
    `checker_process.CPU_S`. Compiled grammars are kept in an LRU cache.
    """

    ready = True  # nothing is loaded before the first check

    def __init__(self, tokenizer_json: str, eos: int | None) -> None:
        self._tokenizer_message = {"tokenizer_json": tokenizer_json, "eos": [] if eos is None else [eos]}
        self._thread = ThreadPoolExecutor(1, "w2s-grammar")
        self._process: subprocess.Popen[str] | None = None
        self._cache: OrderedDict[tuple[str, str], str] = OrderedDict()  # (kind, source) -> compiled, oldest first

    async def start(self) -> None:
        """Does nothing: most servers never get a grammar, so the process starts with the first one."""

    async def stop(self) -> None:
        """Ends the process, if it runs, and waits for the thread."""
        if self._process is not None:
            self._process.kill()  # so that the thread does not wait for an answer
        await asyncio.get_running_loop().run_in_executor(self._thread, self._end_process)
        self._thread.shutdown()

    async def check(self, grammar: Grammar) -> Grammar:
        """Returns the grammar compiled.

        Raises RequestError, naming its field, for a grammar that is malformed, not supported or too complex.
        """
        key = (grammar.kind, grammar.source)
        compiled = self._cache.pop(key, None)
        if compiled is None:
            if len(grammar.source) > MAX_LENGTH:
                raise RequestError(f"A grammar may have at most {MAX_LENGTH} characters.", grammar.field)
            compiled = await asyncio.get_running_loop().run_in_executor(self._thread, self._compile, grammar)
        self._cache[key] = compiled
        while sum(map(len, self._cache.values())) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return replace(grammar, kind="compiled", source=compiled)

    # The methods below run in the thread.

    def _compile(self, grammar: Grammar) -> str:
        if self._process is None:
            self._start_process(grammar.field)
        answer = self._send({"kind": grammar.kind, "source": grammar.source})
        if answer is None:
            self._end_process()
            raise RequestError("The grammar is too complex.", grammar.field)
        if "error" in answer:
            raise RequestError(f"The grammar cannot be compiled: {answer['error']}", grammar.field)
        return str(answer["compiled"])

    def _start_process(self, field: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "w2s_core.structured.checker_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C goes to the parent alone; the child ends when its stdin closes
        )
        answer = self._send(self._tokenizer_message)
        if answer is None or "error" in answer:
            self._end_process()
            if answer is None:
                raise WorkerError("The grammar checker process does not start.")
            raise RequestError(f"This model's tokenizer does not support grammars: {answer['error']}", field)

    def _send(self, message: dict[str, Any]) -> dict[str, str] | None:
        """Sends one message and returns the answer; None where the process has died of it."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(json.dumps(message), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError):  # it died before it read everything
                process.communicate(timeout=_STOP_TIMEOUT_S)
