"""From the text of an answer to OpenAI's tool calls, whole and streamed."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from server.api.response_builders import ChatBuilder, ChoiceParts
from server.api.schemas.chat import AssistantMessage, ChatBody, ChatChoice, ChatChunkChoice, ChatFinishReason, Delta
from server.api.schemas.logprobs import Details
from server.api.schemas.tools import FunctionCall, NamedChoice, ToolCall, ToolCallDelta
from w2s_core.engine.events import TokenInfo
from w2s_core.errors import RequestError
from w2s_core.structured.forced_calls import ForcedCallParser
from w2s_core.structured.tool_formats import Call, ToolFormat
from w2s_core.structured.tool_grammar import tool_call_grammar
from w2s_core.structured.tool_parsing import ArgumentsDelta, CallStart, ParsedPart, ToolCallParser
from w2s_core.types import FinishReason, GenerationRequest, Grammar

if TYPE_CHECKING:
    from w2s_core.engine.engine import Engine

_ID_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class ToolCalling:
    """How one request's answers call tools. `known`: the names of its tools; `most` calls an answer, None = any number;
    `hidden`: the format's marks are special tokens, which a text shows only where they are not skipped. `grammar`: what
    an answer must be that has to call one."""

    form: ToolFormat
    known: frozenset[str]
    most: int | None
    hidden: bool
    grammar: Grammar | None

    def parser(self) -> ToolCallParser | ForcedCallParser:
        if self.grammar is not None:
            return ForcedCallParser(self.known)
        return ToolCallParser(self.form, self.known, max_calls=self.most)

    def adjusted(self, asked: GenerationRequest) -> GenerationRequest:
        """What the engine must do besides."""
        sampling = asked.sampling
        if self.hidden:
            sampling = replace(sampling, skip_special_tokens=False)
        if self.grammar is not None:
            sampling = replace(sampling, grammar=self.grammar)
        return replace(asked, sampling=sampling)

    def new_id(self) -> str:
        letters = "".join(secrets.choice(_ID_LETTERS) for _ in range(self.form.id_length))
        return letters if self.form.id_length < 10 else f"call_{letters}"


def calling_of(engine: Engine, body: ChatBody) -> ToolCalling:
    """Raises RequestError where this model's calls cannot be read."""
    form = engine.tool_format(body.model)
    if form is None:
        raise RequestError(
            "How this model writes calls of tools is not known; the operator can set its tool_format.", "tools"
        )
    tokenizer = engine.tokenizer(body.model)
    opening = tokenizer.encode(form.opening, special_tokens=False)
    hidden = form.opening not in tokenizer.decode(opening)
    named = body.tool_choice if isinstance(body.tool_choice, NamedChoice) else None
    most = 1 if named or body.parallel_tool_calls is False else None
    tools = [tool for tool in body.offered if named is None or tool.function.name == named.function.name]
    grammar = None
    if named or body.tool_choice == "required":
        if body.grammar is not None:
            raise RequestError(
                f"Not together with `{body.grammar.field}`: an answer follows one grammar.", "tool_choice"
            )
        mark = opening[0] if hidden and len(opening) == 1 else None
        source = tool_call_grammar(form, [tool.for_template() for tool in tools], max_calls=most, opening_token=mark)
        grammar = Grammar("grammar", source, "tool_choice")
    return ToolCalling(form, frozenset(tool.function.name for tool in tools), most, hidden, grammar)


@dataclass(slots=True)
class _Choice:
    """What is known of a streamed choice: `tokens` wait for a delta to go with."""

    parser: ToolCallParser | ForcedCallParser
    calls: int = 0
    tokens: list[TokenInfo] = field(default_factory=list)


class ToolChatBuilder(ChatBuilder):
    """Chat answers that may call tools."""

    def __init__(self, details: Details, calling: ToolCalling) -> None:
        super().__init__(details)
        self._calling = calling
        self._choices: dict[int, _Choice] = {}

    def whole_choice(self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any) -> ChatChoice:
        parser = self._calling.parser()
        pieces = [*parser.feed(parts.text), *parser.finish()]
        calls = _calls(pieces)
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        said: dict[str, Any] = {"content": text if text or not calls else None}
        if calls:
            said["tool_calls"] = [
                ToolCall(
                    id=self._calling.new_id(),
                    type="function",
                    function=FunctionCall(name=call.name, arguments=call.arguments),
                )
                for call in calls
            ]
        message = AssistantMessage(role="assistant", refusal=None, **said)
        told = self._told(parts.tokens, whole=True)
        return ChatChoice(index=index, message=message, finish_reason=_reason(reason, len(calls)), **told, **extras)

    def text_deltas(self, index: int, parts: ChoiceParts) -> list[ChatChunkChoice]:
        choice = self._choice(index)
        choice.tokens += parts.tokens
        return self._deltas(index, choice, choice.parser.feed(parts.text))

    def last_deltas(self, index: int, parts: ChoiceParts, reason: FinishReason, **extras: Any) -> list[ChatChunkChoice]:
        choice = self._choice(index)
        choice.tokens += parts.tokens
        deltas = self._deltas(index, choice, choice.parser.finish())
        last = self._delta(index, Delta(), choice.tokens, _reason(reason, choice.calls), **extras)
        return [*deltas, last]

    def _choice(self, index: int) -> _Choice:
        return self._choices.setdefault(index, _Choice(self._calling.parser()))

    def _deltas(self, index: int, choice: _Choice, pieces: Sequence[ParsedPart]) -> list[ChatChunkChoice]:
        said: list[Delta] = []
        for piece in pieces:
            match piece:
                case str():
                    said.append(Delta(content=piece))
                case ArgumentsDelta():
                    said.append(_part(choice.calls - 1, piece.text))
                case CallStart():
                    said.append(self._header(choice.calls, piece.name))
                    choice.calls += 1
                case Call():
                    said += [self._header(choice.calls, piece.name), _part(choice.calls, piece.arguments)]
                    choice.calls += 1
        deltas = []
        for delta in said:
            deltas.append(self._delta(index, delta, choice.tokens, None))
            choice.tokens = []
        return deltas

    def _header(self, number: int, name: str) -> Delta:
        """What is called, before with what."""
        function = FunctionCall(name=name, arguments="")
        header = ToolCallDelta(index=number, id=self._calling.new_id(), type="function", function=function)
        return Delta(tool_calls=[header])


def _part(number: int, arguments: str) -> Delta:
    return Delta(tool_calls=[ToolCallDelta(index=number, function=FunctionCall(arguments=arguments))])


def _calls(pieces: Sequence[ParsedPart]) -> list[Call]:
    """The calls of a whole answer."""
    calls: list[Call] = []
    for piece in pieces:
        match piece:
            case Call():
                calls.append(piece)
            case CallStart():
                calls.append(Call(piece.name, ""))
            case ArgumentsDelta():
                calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + piece.text)
            case _:
                pass
    return calls


def _reason(reason: FinishReason, calls: int) -> ChatFinishReason:
    return "tool_calls" if calls and reason == "stop" else reason
