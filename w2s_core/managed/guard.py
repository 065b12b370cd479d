"""Guard process of a managed vLLM: no process of vLLM outlives vLLM or the server, however either ends.

Started as `python guard.py SECONDS COMMAND …` by the server, which holds the other end of its stdin and never writes.
It stops vLLM when stdin ends, which happens also when the server is killed, and kills it at a SIGTERM. When vLLM has
ended it kills and reaps the processes that vLLM leaves behind, so that nothing keeps a GPU's memory. They are its own
children by then, because it is a subreaper. If the guard is killed itself, the kernel kills vLLM, and the server the
rest of the process group.

It imports the standard library only, and runs no thread when it forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_POLL_S = 0.01


def main(stop_timeout_s: float, command: Sequence[str]) -> None:
    """Runs `command` until it ends, and kills all its descendants.

    `stop_timeout_s`: how long it may take to end once it has been told to.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        vllm = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)  # noqa: PLW1509
    except OSError as error:
        _say(f"{command[0]} cannot be run: {error.strerror}")
        return
    signal.signal(signal.SIGTERM, lambda *_: vllm.kill())
    threading.Thread(target=_stop_at_end_of_stdin, args=(vllm, stop_timeout_s), daemon=True).start()
    _say(f"vllm serve has ended with status {vllm.wait()}")
    while _reap():
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(_POLL_S)


def _die_with_parent() -> None:
    """Runs in a new process before its program: the kernel shall kill it when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _stop_at_end_of_stdin(vllm: subprocess.Popen[bytes], timeout_s: float) -> None:
    while os.read(0, 1024):
        pass
    vllm.terminate()
    try:
        vllm.wait(timeout_s)
    except subprocess.TimeoutExpired:
        vllm.kill()


def _reap() -> bool:
    """Reaps the children that have ended. Returns whether others are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _children() -> Iterator[int]:
    for listed in Path("/proc/self/task").glob("*/children"):
        yield from map(int, listed.read_text().split())


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the server is gone
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
