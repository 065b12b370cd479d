"""Tool calls: parses the text of an answer into OpenAI's `tool_calls`, complete and streamed."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from server.api.response_builders import ChatBuilder, ChoiceParts
from server.api.schemas.chat import AssistantMessage, ChatBody, ChatChoice, ChatChunkChoice, ChatFinishReason, Delta
from server.api.schemas.logprobs import OutputOptions
from server.api.schemas.tools import FunctionCall, NamedChoice, Tool, ToolCall, ToolCallDelta
from w2s_core.engine.events import TokenInfo
from w2s_core.errors import RequestError
from w2s_core.structured.forced_calls import ForcedCallParser
from w2s_core.structured.tool_formats import Call, ToolFormat
from w2s_core.structured.tool_grammar import tool_call_grammar
from w2s_core.structured.tool_parsing import ArgumentsDelta, CallStart, ParsedPart, ToolCallParser
from w2s_core.types import FinishReason, GenerationRequest, Grammar

if TYPE_CHECKING:
    from w2s_core.engine.engine import Engine

_ID_CHARACTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class ToolCallSettings:
    """How the answers to one request may call tools.

    `max_calls` bounds the calls per answer; None means any number. `special_markers` is true if the format marks calls
    with special tokens, which the text shows only if they are not skipped. `grammar` is set if the answer must call a
    tool (`tool_choice` is `required` or names a function).
    """

    format: ToolFormat
    tool_names: frozenset[str]
    max_calls: int | None
    special_markers: bool
    grammar: Grammar | None

    def new_parser(self) -> ToolCallParser | ForcedCallParser:
        """A parser for the text of one answer."""
        if self.grammar is not None:
            return ForcedCallParser(self.tool_names)
        return ToolCallParser(self.format, self.tool_names, max_calls=self.max_calls)

    def apply_to(self, request: GenerationRequest) -> GenerationRequest:
        """The engine's request with the sampling settings that tool calls need."""
        sampling = request.sampling
        if self.special_markers:
            sampling = replace(sampling, skip_special_tokens=False)
        if self.grammar is not None:
            sampling = replace(sampling, grammar=self.grammar)
        return replace(request, sampling=sampling)

    def new_call_id(self) -> str:
        """A random id, of the length that the model's chat template expects."""
        characters = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(self.format.id_length))
        return characters if self.format.id_length < 10 else f"call_{characters}"


def tool_call_settings(engine: Engine, body: ChatBody) -> ToolCallSettings:
    """The settings for a request that offers tools. Raises RequestError if the model's tool call format is unknown."""
    tool_format = engine.tool_format(body.model)
    if tool_format is None:
        raise RequestError(
            "The tool call format of this model is not known. The operator can set its `tool_format`.", "tools"
        )
    tokenizer = engine.tokenizer(body.model)
    opening = tokenizer.encode(tool_format.opening, special_tokens=False)
    special_markers = tool_format.opening not in tokenizer.decode(opening)
    named = body.tool_choice if isinstance(body.tool_choice, NamedChoice) else None
    max_calls = 1 if named or body.parallel_tool_calls is False else None
    tools = [tool for tool in body.offered_tools if named is None or tool.function.name == named.function.name]
    grammar = None
    if named or body.tool_choice == "required":
        opening_token = opening[0] if special_markers and len(opening) == 1 else None
        grammar = _forced_call_grammar(body, tool_format, tools, max_calls, opening_token)
    tool_names = frozenset(tool.function.name for tool in tools)
    return ToolCallSettings(tool_format, tool_names, max_calls, special_markers, grammar)


def _forced_call_grammar(
    body: ChatBody, tool_format: ToolFormat, tools: list[Tool], max_calls: int | None, opening_token: int | None
) -> Grammar:
    """The grammar of an answer that must call one of `tools`. Raises RequestError if the request has another one."""
    if body.grammar is not None:
        raise RequestError(
            f"Cannot be combined with `{body.grammar.field}`: an answer follows one grammar.", "tool_choice"
        )
    schemas = [tool.for_grammar() for tool in tools]
    return Grammar(
        "grammar",
        tool_call_grammar(tool_format, schemas, max_calls=max_calls, opening_token=opening_token),
        "tool_choice",
    )


@dataclass(slots=True)
class _ChoiceState:
    """The state of a streamed choice. `tokens` are those that no delta has carried yet."""

    parser: ToolCallParser | ForcedCallParser
    calls: int = 0
    tokens: list[TokenInfo] = field(default_factory=list)


class ToolChatBuilder(ChatBuilder):
    """Builds the responses of `POST /v1/chat/completions` for requests that offer tools."""

    def __init__(self, output_options: OutputOptions, settings: ToolCallSettings) -> None:
        super().__init__(output_options)
        self._settings = settings
        self._choices: dict[int, _ChoiceState] = {}

    def full_choice(self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any) -> ChatChoice:
        parser = self._settings.new_parser()
        parsed = [*parser.feed(parts.text), *parser.finish()]
        calls = _complete_calls(parsed)
        text = "".join(part for part in parsed if isinstance(part, str))
        message_fields: dict[str, Any] = {"content": text if text or not calls else None}
        if calls:
            message_fields["tool_calls"] = [
                ToolCall(
                    id=self._settings.new_call_id(),
                    type="function",
                    function=FunctionCall(name=call.name, arguments=call.arguments),
                )
                for call in calls
            ]
        message = AssistantMessage(role="assistant", refusal=None, **message_fields, **parts.reasoning_fields)
        finish_reason = _finish_reason(reason, len(calls))
        token_fields = self._token_fields(parts.tokens, full=True)
        return ChatChoice(index=index, message=message, finish_reason=finish_reason, **token_fields, **extras)

    def text_deltas(self, index: int, parts: ChoiceParts) -> list[ChatChunkChoice]:
        choice = self._choice(index)
        choice.tokens += parts.tokens
        return self._deltas(index, choice, choice.parser.feed(parts.text))

    def final_deltas(
        self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any
    ) -> list[ChatChunkChoice]:
        choice = self._choice(index)
        choice.tokens += parts.tokens
        deltas = self._deltas(index, choice, choice.parser.finish())
        last = self._delta(index, Delta(), choice.tokens, _finish_reason(reason, choice.calls), **extras)
        return [*deltas, last]

    def _choice(self, index: int) -> _ChoiceState:
        return self._choices.setdefault(index, _ChoiceState(self._settings.new_parser()))

    def _deltas(self, index: int, choice: _ChoiceState, parsed: Sequence[ParsedPart]) -> list[ChatChunkChoice]:
        """The deltas for parsed parts; the first one carries the tokens that are pending."""
        deltas: list[Delta] = []
        for part in parsed:
            match part:
                case str():
                    deltas.append(Delta(content=part))
                case ArgumentsDelta():
                    deltas.append(_arguments_delta(choice.calls - 1, part.text))
                case CallStart():
                    deltas.append(self._call_start_delta(choice.calls, part.name))
                    choice.calls += 1
                case Call():
                    start = self._call_start_delta(choice.calls, part.name)
                    deltas += [start, _arguments_delta(choice.calls, part.arguments)]
                    choice.calls += 1
        choices = []
        for delta in deltas:
            choices.append(self._delta(index, delta, choice.tokens, None))
            choice.tokens = []
        return choices

    def _call_start_delta(self, number: int, name: str) -> Delta:
        """The first delta of a call: its id and its function's name."""
        function = FunctionCall(name=name, arguments="")
        start = ToolCallDelta(index=number, id=self._settings.new_call_id(), type="function", function=function)
        return Delta(tool_calls=[start])


def _arguments_delta(number: int, arguments: str) -> Delta:
    return Delta(tool_calls=[ToolCallDelta(index=number, function=FunctionCall(arguments=arguments))])


def _complete_calls(parsed: Sequence[ParsedPart]) -> list[Call]:
    """The calls among the parsed parts of a complete answer, their arguments joined."""
    calls: list[Call] = []
    for part in parsed:
        match part:
            case Call():
                calls.append(part)
            case CallStart():
                calls.append(Call(part.name, ""))
            case ArgumentsDelta():
                calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + part.text)
            case _:
                pass
    return calls


def _finish_reason(reason: FinishReason, calls: int) -> ChatFinishReason:
    return "tool_calls" if calls and reason == "stop" else reason
