"""Guard process of a managed vLLM: no process of vLLM outlives vLLM or the server, however either ends.

Started as `python guard.py SECONDS COMMAND …` by the server, which holds the other end of its stdin and never writes.
The guard leads a process group, in which `vllm serve` starts its own processes. It stops vLLM when stdin ends, which
happens also when the server is killed, and kills the whole group when vLLM has ended, so that nothing keeps a GPU's
memory. If the guard is killed itself, the kernel kills vLLM, and the server the rest of the group.

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
from collections.abc import Callable, Sequence

_PR_SET_PDEATHSIG = 1


def main(stop_timeout_s: float, command: Sequence[str]) -> None:
    """Runs `command` and kills the process group, this process included, when it has ended.

    `stop_timeout_s`: how long it may take to end once it has been told to.
    """
    try:
        vllm = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_death_signal())  # noqa: PLW1509
        threading.Thread(target=_stop_at_end_of_stdin, args=(vllm, stop_timeout_s), daemon=True).start()
        _say(f"vllm serve has ended with status {vllm.wait()}")
    except OSError as error:
        _say(f"{command[0]} cannot be run: {error.strerror}")
    finally:
        os.killpg(0, signal.SIGKILL)


def _death_signal() -> Callable[[], object]:
    """A function for a child process before it runs its program: the kernel then kills it when its parent ends."""
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop_at_end_of_stdin(vllm: subprocess.Popen[bytes], timeout_s: float) -> None:
    while os.read(0, 1024):
        pass
    vllm.terminate()
    try:
        vllm.wait(timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the server is gone
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
