"""The grammar checker process: a grammar that crashes or stalls llguidance kills only this process.

It compiles grammars and tries them out. Messages are lines of JSON: on stdin first the tokenizer, then grammars; on
stdout one answer to each. When the process dies instead of answering, the grammar took too much time, memory or stack.
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

from w2s_core.structured.grammar_compiling import compile_grammar, new_matcher, new_tokenizer

CPU_S = 3.0  # processor time that one grammar may take
_MEMORY = 4 << 30  # bytes of address space
_STACK = 1 << 20  # bytes: half of what the library's own threads have where masks are computed
_MAX_MESSAGE_LENGTH = 400
_TRIAL_STEPS = 12  # tokens to draw: a grammar can be small and yet explode after its first tokens


def main() -> None:
    """Answers until the parent closes stdin."""
    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    threading.stack_size(_STACK)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


def _serve() -> None:
    tokenizer: LLTokenizer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if tokenizer is None:
            tokenizer, answer = _load(request)
        else:
            signal.setitimer(signal.ITIMER_PROF, CPU_S)  # when it runs out, the system ends this process
            answer = _check(tokenizer, request)
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


def _load(request: dict[str, Any]) -> tuple[LLTokenizer | None, dict[str, str]]:
    try:
        return new_tokenizer(request["tokenizer_json"], request["eos"]), {}
    except ValueError as error:
        return None, {"error": str(error)}


def _check(tokenizer: LLTokenizer, request: dict[str, Any]) -> dict[str, str]:
    try:
        grammar = compile_grammar(request["kind"], request["source"])
    except (ValueError, RecursionError) as error:
        return {"error": _shortened(str(error))}
    matcher = new_matcher(tokenizer, grammar)
    problem = _compile_error(matcher) or _trial_error(matcher)
    return {"error": _shortened(problem)} if problem else {"compiled": grammar}


def _compile_error(matcher: LLMatcher) -> str | None:
    if matcher.is_error():
        return matcher.get_error() or "no text satisfies it"
    return next(iter(matcher.get_grammar_warnings()), None)  # a warning says that part of it would not be enforced


def _shortened(message: str) -> str:
    """Drops the library's markers and cuts long quotations of the grammar."""
    plain = message.replace("<non-verbose/>", "").strip()
    return plain if len(plain) <= _MAX_MESSAGE_LENGTH else plain[:_MAX_MESSAGE_LENGTH] + " …"


def _trial_error(matcher: LLMatcher) -> str | None:
    """Draws the first tokens at random and returns what goes wrong, or None."""
    rng = random.Random(0)
    for _ in range(_TRIAL_STEPS):
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little"))
        if matcher.is_error():
            return matcher.get_error()
        if not len(allowed):
            return "no text satisfies it"
        if matcher.is_stopped():
            return None
        matcher.consume_token(int(rng.choice(allowed)))
    return None


if __name__ == "__main__":
    main()
