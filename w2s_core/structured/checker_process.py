"""A process of its own that tries grammars out: one that crashes the library, or keeps it busy, ends this and no other.

Lines of JSON: the first has the tokenizer, each further one a grammar; each is answered by one. No answer, because the
process is gone, means that the grammar took too much time, memory or stack.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from w2s_core.structured.grammar_compiling import compiled, new_matcher, new_tokenizer

CPU_S = 3.0  # processor time that one grammar may take
_MEMORY = 4 << 30  # bytes of addresses
_STACK = 1 << 20  # bytes: half of what the library's own threads have where masks are computed
_LONGEST_MESSAGE = 400
_STEPS = 12  # tokens to try: a grammar can be small and yet explode behind its first ones


def main() -> None:
    """Returns when the parent closes its end."""
    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    threading.stack_size(_STACK)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


def _serve() -> None:
    tokenizer: LLTokenizer | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if tokenizer is None:
            tokenizer, answer = _load(asked)
        else:
            signal.setitimer(signal.ITIMER_PROF, CPU_S)  # then the system ends this process
            answer = _check(tokenizer, asked)
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


def _load(asked: dict[str, Any]) -> tuple[LLTokenizer | None, dict[str, str]]:
    try:
        return new_tokenizer(asked["tokenizer_json"], asked["eos"]), {}
    except ValueError as error:
        return None, {"error": str(error)}


def _check(tokenizer: LLTokenizer, asked: dict[str, Any]) -> dict[str, str]:
    try:
        grammar = compiled(asked["kind"], asked["source"])
    except (ValueError, RecursionError) as error:
        return {"error": _shortened(str(error))}
    matcher = new_matcher(tokenizer, grammar)
    problem = _problem(matcher) or _walk(matcher)
    return {"error": _shortened(problem)} if problem else {"compiled": grammar}


def _problem(matcher: LLMatcher) -> str | None:
    if matcher.is_error():
        return matcher.get_error() or "no text satisfies it"
    return next(iter(matcher.get_grammar_warnings()), None)  # something of it would not be held


def _shortened(message: str) -> str:
    """Without the library's marks, and without all of a pattern that it quotes."""
    plain = message.replace("<non-verbose/>", "").strip()
    return plain if len(plain) <= _LONGEST_MESSAGE else plain[:_LONGEST_MESSAGE] + " …"


def _walk(matcher: LLMatcher) -> str | None:
    """What goes wrong within the first steps, by any way."""
    ways = random.Random(0)
    for _ in range(_STEPS):
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little"))
        if matcher.is_error():
            return matcher.get_error()
        if not len(allowed):
            return "no text satisfies it"
        if matcher.is_stopped():
            return None
        matcher.consume_token(int(ways.choice(allowed)))
    return None


if __name__ == "__main__":
    main()
