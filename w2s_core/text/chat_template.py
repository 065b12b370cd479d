"""Chat templates: renders a conversation as the text that a model was trained to read."""

from __future__ import annotations

import inspect
import re
import secrets
from typing import TYPE_CHECKING, Any

from w2s_core.errors import RequestError
from w2s_core.text.conversation import fit_call_ids, merge_system_messages, system_texts
from w2s_core.types import ChatPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class ChatTemplate:
    """One tokenizer's chat template, or templates by name; a tokenizer may have none."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        parameters = inspect.signature(tokenizer.apply_chat_template).parameters
        self._reserved = {*parameters, "self", "messages"} - {"documents"}

    @property
    def exists(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self._tokenizer.chat_template)

    @property
    def supports_tools(self) -> bool:
        """Whether the template reads the variable `tools`."""
        return _mentions(self.source(tools=True), "tools")

    def source(self, *, tools: bool = False) -> str:
        """The Jinja source that renders a conversation with or without tools; empty where there is none."""
        templates = self._tokenizer.chat_template or ""
        if isinstance(templates, str):
            return templates
        return str(templates.get("tool_use" if tools and "tool_use" in templates else "default", ""))

    def render(self, prompt: ChatPrompt) -> str:
        """Renders the conversation as text.

        Raises RequestError, naming the field, where the template refuses or would ignore something it was given.
        """
        self._check(prompt)
        messages = fit_call_ids([dict(message) for message in prompt.messages], self.source(tools=bool(prompt.tools)))
        if not prompt.continues:
            return self._apply(prompt, messages)
        # A marker shows where the last message ends, whatever the template appends, and keeps its trailing blanks.
        *before, last = messages
        marker = f"[continued:{secrets.token_hex(8)}]"
        text = last.get("content")
        if not isinstance(text, str):
            raise RequestError("The last message has no text content to continue.", "continue_final_message")
        rendered = self._apply(prompt, [*before, {**last, "content": text + marker}])
        return _restore_leading_blanks(rendered[: rendered.rfind(marker)] if marker in rendered else None, text)

    def _apply(self, prompt: ChatPrompt, messages: list[dict[str, Any]]) -> str:
        """Renders the messages, with one system message if the template refuses several or leaves one out."""
        merged = merge_system_messages(messages)
        if merged == messages:
            return self._render(prompt, messages)
        try:
            rendered = self._render(prompt, messages)
        except RequestError:
            return self._render(prompt, merged)
        complete = all(text.strip() in rendered for text in system_texts(messages))
        return rendered if complete else self._render(prompt, merged)

    def _render(self, prompt: ChatPrompt, messages: list[dict[str, Any]]) -> str:
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
            rendered.encode()  # JSON can escape half of a surrogate pair, which is not text
        except Exception as error:  # a template is a program and can raise anything; the messages are to blame
            raise RequestError(f"The model's chat template rejects these messages: {error}", "messages") from None
        return rendered

    def _check(self, prompt: ChatPrompt) -> None:
        for name in prompt.template_variables:
            if name in self._reserved:
                raise RequestError(
                    f"`{name}` is set by the server and cannot be a variable of the chat template.",
                    f"chat_template_kwargs.{name}",
                )
        documents = prompt.template_variables.get("documents") or []
        if not isinstance(documents, list) or not all(isinstance(document, dict) for document in documents):
            raise RequestError("Documents must be a list of objects.", "chat_template_kwargs.documents")
        source = self.source(tools=bool(prompt.tools))
        if source and prompt.tools and not self.supports_tools:
            raise RequestError("The model's chat template does not support tools.", "tools")
        for number, message in enumerate(prompt.messages):
            if source and message.get("tool_calls") and not _mentions(source, "tool_calls"):
                raise RequestError(
                    "The model's chat template does not support tool calls.", f"messages.{number}.tool_calls"
                )


def _mentions(source: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", source) is not None


def _restore_leading_blanks(rendered: str | None, text: str) -> str:
    """The rendered conversation up to the end of `text`, with the leading blanks that the template may have trimmed.

    Raises RequestError where the template has changed anything else, or left the message out (`rendered` None).
    """
    trimmed = text.lstrip()
    if rendered is None or not rendered.endswith(trimmed):
        raise RequestError(
            "The model's chat template changes the last message, so it cannot be continued.",
            "continue_final_message",
        )
    return rendered if rendered.endswith(text) else rendered[: len(rendered) - len(trimmed)] + text
