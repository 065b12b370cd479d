"""What a worker writes to stderr (progress bars, warnings, the trace of a crash), as lines in this process's log."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

_log = logging.getLogger("w2s.worker")
_LONGEST = 2000  # bytes of a line that are kept
_LAST = 20  # lines that are remembered for whoever asks why a worker died
_MOST, _WINDOW_S = 100, 10.0  # lines that are logged within so many seconds; of the others the last ones, later
_READ = 2**16
_PATIENCE_S = 1.0  # a process of the worker's own may hold its stderr open after its end
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e\xa0-\u2027\u202a-\U0010ffff]")


def shown_as_it_is() -> bool:
    """Whether stderr is a terminal: there progress bars move only if workers write to it themselves."""
    try:
        return os.isatty(2)
    except OSError:  # closed
        return False


@dataclass(frozen=True, slots=True)
class Line:
    """`progress`: it was written over and over, as progress bars are; this is how it looked in the end."""

    text: str
    progress: bool


class Lines:
    """Cuts bytes into lines. Keeps no more than one of them, of limited length."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._returned = False  # to the line's beginning: what comes is written over it
        self._progress = False

    def feed(self, data: bytes) -> Iterator[Line]:
        """The lines that end in `data`; those that show nothing are left out."""
        first, *others = data.split(b"\n")
        self._write(first)
        for other in others:
            yield from self.end()
            self._write(other)

    def end(self) -> Iterator[Line]:
        """The line as it stands now."""
        text = _CONTROL.sub("", self._bytes.decode(errors="replace").replace("\t", "    ")).rstrip()
        line = Line(text, self._progress)
        self._bytes.clear()
        self._returned = self._progress = False
        if text:
            yield line

    def _write(self, data: bytes) -> None:
        for i, part in enumerate(data.split(b"\r")):
            self._returned |= i > 0
            if part and self._returned:
                self._bytes.clear()
                self._returned, self._progress = False, True
            self._bytes += part[: _LONGEST - len(self._bytes)]


class StderrRelay:
    """Logs what comes from `stream` until it ends, in a thread of its own, so that a worker never waits for a reader.

    A flood is not logged whole: of what is too much, the last lines come when it is over. `last` are the latest lines.
    """

    def __init__(self, worker: str, stream: IO[bytes], clock: Callable[[], float] = time.monotonic) -> None:
        self.last: deque[str] = deque(maxlen=_LAST)
        self._worker = worker
        self._stream = stream
        self._clock = clock
        self._began = clock()
        self._logged = 0
        self._late: deque[Line] = deque(maxlen=_LAST)
        self._left_out = 0
        self._thread = threading.Thread(target=self._run, daemon=True, name="w2s-stderr")
        self._thread.start()

    def finish(self) -> None:
        """Call it when the worker has ended: waits for its last lines."""
        self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        lines = Lines()
        with self._stream as stream:
            while data := os.read(stream.fileno(), _READ):
                for line in lines.feed(data):
                    self._take(line)
        for line in lines.end():
            self._take(line)
        self._catch_up()

    def _take(self, line: Line) -> None:
        if not line.progress:
            self.last.append(line.text)
        now = self._clock()
        if now - self._began >= _WINDOW_S:
            self._catch_up()
            self._began, self._logged = now, 0
        if self._logged < _MOST:
            self._logged += 1
            self._tell(line)
        else:
            self._left_out += len(self._late) == _LAST
            self._late.append(line)

    def _catch_up(self) -> None:
        if self._left_out:
            self._tell(Line(f"… {self._left_out} more lines …", progress=False))
        for line in self._late:
            self._tell(line)
        self._late.clear()
        self._left_out = 0

    def _tell(self, line: Line) -> None:
        level = logging.INFO if line.progress else logging.WARNING
        _log.log(level, "worker %s: %s", self._worker, line.text, extra={"worker": self._worker})
