"""Worker stderr in the log: progress bars, warnings and crash traces that a worker writes become log lines here."""

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
_MAX_LINE_BYTES = 2000  # longer lines are cut
_LAST_LINES = 20  # kept to explain why a worker died, and from the end of a flood
_MAX_LINES, _WINDOW_S = 100, 10.0  # lines logged at once per window; the last of the others are logged after it
_READ_SIZE = 2**16
_JOIN_TIMEOUT_S = 1.0  # a child process of the worker may hold its stderr open after the worker's end
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e\xa0-\u2027\u202a-\U0010ffff]")


def stderr_is_terminal() -> bool:
    """Whether stderr is a terminal. Progress bars move there only if workers write to it themselves."""
    try:
        return os.isatty(2)
    except OSError:  # closed
        return False


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output. `progress` is True if it was overwritten as progress bars are; `text` is its last state."""

    text: str
    progress: bool


class LineSplitter:
    """Splits a stream of bytes into lines. Holds no more than one line, of limited length."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._returned = False  # after a carriage return: what comes next overwrites the line
        self._progress = False

    def feed(self, data: bytes) -> Iterator[Line]:
        """The lines that end in `data`, without blank ones."""
        first, *others = data.split(b"\n")
        self._write(first)
        for other in others:
            yield from self.end()
            self._write(other)

    def end(self) -> Iterator[Line]:
        """Ends the current line. Yields it unless it is blank."""
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
            self._bytes += part[: _MAX_LINE_BYTES - len(self._bytes)]


class StderrRelay:
    """Logs a worker's stderr until it ends, in a thread of its own, so that the worker never waits for a reader.

    A flood is rate limited: of the lines that are too many, the last ones are logged when it is over. `last_lines`
    are the latest lines that are not progress.
    """

    def __init__(self, worker: str, stream: IO[bytes], clock: Callable[[], float] = time.monotonic) -> None:
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._worker = worker
        self._stream = stream
        self._clock = clock
        self._window_start = clock()
        self._logged = 0  # lines in this window
        self._delayed: deque[Line] = deque(maxlen=_LAST_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, daemon=True, name="w2s-stderr")
        self._thread.start()

    def finish(self) -> None:
        """Waits for the worker's last lines. Call it when the worker has ended."""
        self._thread.join(_JOIN_TIMEOUT_S)

    def _run(self) -> None:
        splitter = LineSplitter()
        with self._stream as stream:
            while data := os.read(stream.fileno(), _READ_SIZE):
                for line in splitter.feed(data):
                    self._handle(line)
        for line in splitter.end():
            self._handle(line)
        self._flush_delayed()

    def _handle(self, line: Line) -> None:
        """Logs the line now, or delays it if this window's lines are used up."""
        if not line.progress:
            self.last_lines.append(line.text)
        now = self._clock()
        if now - self._window_start >= _WINDOW_S:
            self._flush_delayed()
            self._window_start, self._logged = now, 0
        if self._logged < _MAX_LINES:
            self._logged += 1
            self._log_line(line)
        else:
            self._dropped += len(self._delayed) == _LAST_LINES
            self._delayed.append(line)

    def _flush_delayed(self) -> None:
        if self._dropped:
            self._log_line(Line(f"… {self._dropped} more lines …", progress=False))
        for line in self._delayed:
            self._log_line(line)
        self._delayed.clear()
        self._dropped = 0

    def _log_line(self, line: Line) -> None:
        level = logging.INFO if line.progress else logging.WARNING
        _log.log(level, "worker %s: %s", self._worker, line.text, extra={"worker": self._worker})
