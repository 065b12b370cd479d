"""One run of `vllm serve` under its guard: its end, its output and the end of its process group."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Self

from w2s_core.managed import guard
from w2s_core.managed.output import VLLMOutput

STOP_TIMEOUT_S = 10.0  # that vLLM has to end by itself
_SPARE_S = 5.0  # that its guard has beyond


class VLLMProcess:
    """A guard process and the vLLM that it runs. Make one with `start`.

    `ended` is a task that ends with the guard, when the whole process group is dead and its output is logged.
    """

    def __init__(self, guard_process: asyncio.subprocess.Process, output: VLLMOutput) -> None:
        self._guard = guard_process
        self._output = output
        self.ended = asyncio.create_task(self._wait())

    @classmethod
    async def start(cls, name: str, command: Sequence[str], environment: Mapping[str, str], api_key: str) -> Self:
        """Runs `command`, for the large model `name`. Raises OSError if no process can be started."""
        with ExitStack() as on_error:
            ours, theirs = os.pipe()
            on_error.callback(os.close, ours)
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", guard.__file__, str(STOP_TIMEOUT_S), *command),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=theirs,
                    stderr=theirs,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for the server, which stops vLLM in order
                )
            finally:
                os.close(theirs)
            on_error.pop_all()
        return cls(process, VLLMOutput(name, os.fdopen(ours, "rb", 0), api_key))

    @property
    def pid(self) -> int:
        """The guard's, which is also the number of the process group."""
        return self._guard.pid

    @property
    def last_lines(self) -> Sequence[str]:
        """The latest lines of its output."""
        return tuple(self._output.last_lines)

    def kill(self) -> None:
        """Kills vLLM at once; its guard kills all its processes. A guard that does not is killed as well."""
        with suppress(ProcessLookupError):
            self._guard.terminate()
        asyncio.get_running_loop().call_later(_SPARE_S, self._kill_group)

    async def stop(self) -> None:
        """Ends vLLM: SIGTERM by its guard, then SIGKILL if it does not end in time."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        await asyncio.wait([self.ended], timeout=STOP_TIMEOUT_S + _SPARE_S)
        self._kill_group()
        await self.ended

    def _kill_group(self) -> None:
        if self.ended.done():
            return  # its number may be another group's by now
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _wait(self) -> None:
        await self._guard.wait()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._kill_group()  # if the guard was killed itself, the others are still there
        await asyncio.to_thread(self._output.finish)
