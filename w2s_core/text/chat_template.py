"""Conversations as text, by the template that a model's tokenizer brings."""

from __future__ import annotations

import inspect
import re
import secrets
from typing import TYPE_CHECKING, Any

from w2s_core.errors import RequestError
from w2s_core.types import ChatPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class ChatTemplate:
    """Of one tokenizer, which may have none."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._reserved = {*inspect.signature(tokenizer.apply_chat_template).parameters, "self", "messages"}

    @property
    def exists(self) -> bool:
        return bool(self._tokenizer.chat_template)

    @property
    def knows_tools(self) -> bool:
        return _mentions(self.source(tools=True), "tools")

    def source(self, *, tools: bool = False) -> str:
        """What renders a conversation, without or with tools; empty where there is nothing."""
        named = self._tokenizer.chat_template or ""
        if isinstance(named, str):
            return named
        return str(named.get("tool_use" if tools and "tool_use" in named else "default", ""))

    def render(self, prompt: ChatPrompt) -> str:
        """Raises RequestError, naming the field, where the template refuses, or would leave out what it was given."""
        self._check(prompt)
        if not prompt.continues:
            return self._apply(prompt, [dict(message) for message in prompt.messages])
        # A mark shows where the last message ends, whatever the template puts behind it, and keeps blanks at its end.
        *before, last = [dict(message) for message in prompt.messages]
        mark = f"[continued:{secrets.token_hex(8)}]"
        text = last.get("content")
        if not isinstance(text, str):
            raise RequestError("The last message has no content to continue.", "continue_final_message")
        rendered = self._apply(prompt, [*before, {**last, "content": text + mark}])
        return _with_end(rendered[: rendered.rfind(mark)] if mark in rendered else None, text)

    def _apply(self, prompt: ChatPrompt, messages: list[dict[str, Any]]) -> str:
        try:
            rendered = str(
                self._tokenizer.apply_chat_template(
                    messages,
                    tools=[dict(tool) for tool in prompt.tools] or None,
                    tokenize=False,
                    add_generation_prompt=prompt.opens_answer,
                    **prompt.template_variables,
                )
            )
            rendered.encode()  # half of a surrogate pair, which JSON can escape, is no text
        except Exception as error:  # a template is a program: it can fail in every way, and always over these messages
            raise RequestError(f"The model's chat template refuses these messages: {error}", "messages") from None
        return rendered

    def _check(self, prompt: ChatPrompt) -> None:
        for name in prompt.template_variables:
            if name in self._reserved:
                raise RequestError("The template's variables have no such name.", f"chat_template_kwargs.{name}")
        source = self.source(tools=bool(prompt.tools))
        if source and prompt.tools and not self.knows_tools:
            raise RequestError("The model's chat template knows no tools.", "tools")
        for number, message in enumerate(prompt.messages):
            if source and message.get("tool_calls") and not _mentions(source, "tool_calls"):
                raise RequestError("The model's chat template knows no tool calls.", f"messages.{number}.tool_calls")


def _mentions(source: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", source) is not None


def _with_end(rendered: str | None, text: str) -> str:
    """The conversation up to the end of `text`, whose first blanks a template may have trimmed."""
    trimmed = text.lstrip()
    if rendered is None or not rendered.endswith(trimmed):
        raise RequestError(
            "The model's chat template changes the last message, which cannot be continued then.",
            "continue_final_message",
        )
    return rendered if rendered.endswith(text) else rendered[: len(rendered) - len(trimmed)] + text
