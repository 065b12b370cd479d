"""Reasoning formats: how models mark the thoughts that they write before an answer, and a parser that separates both.

The names of the formats are vLLM's reasoning parsers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from w2s_core.text.chat_template import ChatTemplate
from w2s_core.text.stop_strings import partial_stop_length


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How one family of models marks its thoughts: between `opening` and `closing`, before the answer.

    `always`: an answer without the opening begins with thoughts as well, because the model leaves it out.
    """

    name: str
    opening: str = "<think>"
    closing: str = "</think>"
    always: bool = False

    def state_behind(self, prompt: str) -> ReasoningState:
        """The state in which an answer to `prompt` begins.

        A chat template may open the thoughts, or close them at once where the request turns thinking off.
        """
        prompt = prompt.rstrip()
        if prompt.endswith(self.closing):
            return ReasoningState.ANSWER
        return ReasoningState.THOUGHTS if self.always or prompt.endswith(self.opening) else ReasoningState.START


class ReasoningState(Enum):
    """Where an answer's text has got to: its start, its thoughts, the blanks behind them, or the answer proper."""

    START = auto()
    THOUGHTS = auto()
    BLANKS = auto()
    ANSWER = auto()


QWEN3 = ReasoningFormat("qwen3")
MISTRAL = ReasoningFormat("mistral", "[THINK]", "[/THINK]")
SEED_OSS = ReasoningFormat("seed_oss", "<seed:think>", "</seed:think>")
REASONING_FORMATS = {
    reasoning_format.name: reasoning_format
    for reasoning_format in (
        QWEN3,
        MISTRAL,
        SEED_OSS,
        ReasoningFormat("deepseek_r1", always=True),
        ReasoningFormat("minimax_m2", always=True),
        ReasoningFormat("olmo3", always=True),
        ReasoningFormat("deepseek_v3"),
        ReasoningFormat("glm45"),
        ReasoningFormat("kimi_k2"),
    )
}


def detect_reasoning_format(template: str) -> ReasoningFormat | None:
    """Detects the reasoning format in the source of a chat template; None where it has none of them."""
    known = (SEED_OSS, MISTRAL, QWEN3)
    return next((form for form in known if form.opening in template or form.closing in template), None)


def resolve_reasoning_format(name: str, template: ChatTemplate | None) -> str | None:
    """Returns the name in `REASONING_FORMATS` for the configuration's `reasoning_format`, None for "none".

    "auto" takes the chat template's; None where that has none.
    """
    if name != "auto":
        return None if name == "none" else name
    detected = detect_reasoning_format(template.source()) if template is not None else None
    return detected.name if detected else None


class ReasoningPart(NamedTuple):
    """A piece of text, and whether it belongs to the thoughts or to the answer."""

    thought: bool
    text: str


class ReasoningParser:
    """Separates a model's text into thoughts and answer while it grows. The markers and the blanks around them are
    part of neither.

    `thoughts_end` is the number of characters up to the end of the closing marker, and `answer_start` those before the
    answer; None as long as they have not been seen. Text that may still turn out to be a marker, or a blank before one,
    is held back.
    """

    def __init__(self, reasoning_format: ReasoningFormat, state: ReasoningState) -> None:
        self.state = state
        self.thoughts_end: int | None = None
        self.answer_start: int | None = None
        self._format = reasoning_format
        self._pending = ""
        self._read = 0  # characters before the pending ones
        self._thinking = False  # thoughts other than blanks have been seen

    def feed(self, text: str) -> list[ReasoningPart]:
        """The parts that more text completes."""
        self._pending += text
        parts = []
        if self.state is ReasoningState.START:
            self._start()
        if self.state is ReasoningState.THOUGHTS:
            parts += self._think()
        if self.state is ReasoningState.BLANKS:
            self._skip_blanks()
        if self.state is ReasoningState.ANSWER and self._pending:
            parts.append(ReasoningPart(False, self._take(len(self._pending))))
        return parts

    def finish(self) -> list[ReasoningPart]:
        """The rest, when no more text follows."""
        rest, thought = self._take(len(self._pending)), self.state is ReasoningState.THOUGHTS
        if thought:
            rest = (rest if self._thinking else rest.lstrip().removeprefix(self._format.opening)).rstrip()
        return [ReasoningPart(thought, rest)] if rest and self.state is not ReasoningState.BLANKS else []

    def _take(self, length: int) -> str:
        taken, self._pending = self._pending[:length], self._pending[length:]
        self._read += length
        return taken

    def _start(self) -> None:
        """Decides whether the answer begins with thoughts, once its text can tell."""
        text, opening = self._pending.lstrip(), self._format.opening
        if text.startswith(opening):
            self.state = ReasoningState.THOUGHTS
        elif not opening.startswith(text):
            self.state = ReasoningState.ANSWER

    def _think(self) -> list[ReasoningPart]:
        if not self._thinking and not self._begin_thoughts():
            return []
        end = self._pending.find(self._format.closing)
        if end >= 0:
            thoughts = self._take(end).rstrip()
            self._take(len(self._format.closing))
            self.state, self.thoughts_end = ReasoningState.BLANKS, self._read
        else:
            ready = self._pending[: len(self._pending) - partial_stop_length(self._pending, [self._format.closing])]
            thoughts = self._take(len(ready.rstrip()))
        return [ReasoningPart(True, thoughts)] if thoughts else []

    def _begin_thoughts(self) -> bool:
        """Drops blanks and the opening marker; false as long as there may be more of them."""
        text, opening = self._pending.lstrip(), self._format.opening
        if text.startswith(opening):
            text = text[len(opening) :].lstrip()
        elif opening.startswith(text):
            return False
        self._thinking = bool(text)
        if text:
            self._take(len(self._pending) - len(text))
        return bool(text)

    def _skip_blanks(self) -> None:
        answer = self._pending.lstrip()
        self._take(len(self._pending) - len(answer))
        if answer:
            self.state, self.answer_start = ReasoningState.ANSWER, self._read
