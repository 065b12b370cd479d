"""Streaming output of a choice: turns beams into events with the text, and on request the tokens, that is final."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile

from w2s_core.engine.events import ChoiceFinished, TextCommitted, TokenInfo
from w2s_core.interfaces import TokenDecoder
from w2s_core.text.offsets import OffsetTracker, TokenSpan
from w2s_core.text.stop_strings import partial_stop_length
from w2s_core.types import Alternatives, Hypothesis, PromptLogprobs, SamplingParams, Tokens


class ChoiceStreamer:
    """Streams the text of one choice once it is final.

    Text is final when every hypothesis in the beam begins with it and no stop string can begin inside it any more.
    """

    def __init__(self, index: int, stops: Sequence[str]) -> None:
        self.index = index
        self._stops = stops
        self._sent_chars = 0

    @property
    def sent_characters(self) -> int:
        """The number of characters of the answer that have been committed."""
        return self._sent_chars

    def commit(self, beam: Sequence[Hypothesis]) -> list[TextCommitted]:
        """The text that has become final since the last call: one event or none."""
        return self._send(self._final_text(beam))

    def finish(self, answer: Hypothesis, *, guided: bool) -> list[TextCommitted | ChoiceFinished]:
        """The rest of the answer's text, then ChoiceFinished."""
        return [*self._send(answer.text), ChoiceFinished(self.index, answer, guided)]

    def _final_text(self, beam: Sequence[Hypothesis]) -> str:
        return common_prefix([self._without_partial_stop(y) for y in beam], self._sent_chars)

    def _without_partial_stop(self, y: Hypothesis) -> str:
        return y.text if y.finished else y.text[: len(y.text) - partial_stop_length(y.text, self._stops)]

    def _send(self, text: str, tokens: Sequence[TokenInfo] = ()) -> list[TextCommitted]:
        """`text` is the whole final text so far; the event holds the part that was not sent yet."""
        new = text[self._sent_chars :]
        self._sent_chars += len(new)
        return [TextCommitted(self.index, new, tuple(tokens))] if new else []


class TokenStreamer(ChoiceStreamer):
    """Streams text together with the tokens it is made of, so text ends at token boundaries.

    Here hypotheses must agree on the tokens, too: equal text of different tokens is not final.
    """

    def __init__(self, index: int, sampling: SamplingParams, decoder: TokenDecoder, prompt: Tokens) -> None:
        super().__init__(index, sampling.stop)
        self._decoder = decoder
        self._offsets = OffsetTracker(decoder, prompt, verbatim=not sampling.skip_special_tokens)
        self._agreed = 0  # number of leading tokens that all hypotheses share
        self._pending: list[TokenSpan] = []  # spans of agreed tokens that are not sent yet

    def commit(self, beam: Sequence[Hypothesis]) -> list[TextCommitted]:
        text = self._final_text(beam)
        agreed = _common_token_count([y.tokens for y in beam], self._agreed)
        self._pending += self._offsets.feed(beam[0].tokens[self._agreed : agreed])
        self._agreed = max(self._agreed, agreed)
        ready = _spans_of_whole_characters(self._pending, len(text))
        if not ready:
            return []
        self._pending = self._pending[len(ready) :]
        return self._send(text[: ready[-1].end], self._token_infos(ready, beam[0]))

    def finish(self, answer: Hypothesis, *, guided: bool) -> list[TextCommitted | ChoiceFinished]:
        committed = self.commit([answer])
        length = len(answer.text)
        if answer.ended and answer.ending is not None:
            self._pending += self._offsets.feed([answer.ending])
        rest = [span for span in [*self._pending, *self._offsets.flush(length)] if span.number < answer.length]
        tokens = tuple(self._token_infos(rest, answer))
        text = self._send(answer.text, tokens)
        return [*committed, *text, ChoiceFinished(self.index, answer, guided, () if text else tokens)]

    def _token_infos(self, spans: Iterable[TokenSpan], y: Hypothesis) -> list[TokenInfo]:
        return [
            token_info(
                self._decoder,
                replace(span, start=min(span.start, len(y.text))),
                y.logprobs[span.number] if span.number < len(y.logprobs) else None,
                y.alternatives[span.number] if span.number < len(y.alternatives) else (),
            )
            for span in spans
        ]


def prompt_token_infos(
    decoder: TokenDecoder, prompt: Tokens, logprobs: PromptLogprobs | None, *, verbatim: bool = False
) -> list[TokenInfo]:
    """The tokens of a prompt with their offsets in its decoded text, and their log-probabilities if there are any.

    `verbatim`: the text shows special tokens.
    """
    offsets = OffsetTracker(decoder, verbatim=verbatim)
    text = (decoder.verbatim if verbatim else decoder).decode(prompt)
    spans = [*offsets.feed(prompt), *offsets.flush(len(text))]
    if logprobs is None:
        return [token_info(decoder, span, None, ()) for span in spans]
    first, *others = spans
    return [
        token_info(decoder, first, None, ()),
        *(
            replace(token_info(decoder, span, logprob, alternatives), rank=rank)
            for span, logprob, rank, alternatives in zip(
                others, logprobs.logprobs, logprobs.ranks, logprobs.alternatives, strict=True
            )
        ),
    ]


def token_info(decoder: TokenDecoder, span: TokenSpan, logprob: float | None, alternatives: Alternatives) -> TokenInfo:
    """The `TokenInfo` of one token. If the token is among its alternatives, it has the same text there as in `span`."""
    texts = [span.token_text if token == span.token else decoder.token_text(token) for token, _ in alternatives]
    top = tuple((token, text, nats) for (token, nats), text in zip(alternatives, texts, strict=True))
    return TokenInfo(span.token, span.token_text, span.start, logprob, alternatives=top)


def _spans_of_whole_characters(spans: Sequence[TokenSpan], length: int) -> list[TokenSpan]:
    """The longest run of leading spans that ends at a character boundary within the first `length` characters."""
    ready = list(takewhile(lambda span: span.end <= length, spans))
    following = spans[len(ready)] if len(ready) < len(spans) else None
    # A token without text is held back: a stop string that begins behind it would cut it off.
    while ready and (ready[-1].start == ready[-1].end or (following and following.start < ready[-1].end)):
        following = ready.pop()
    return ready


def _common_token_count(answers: Sequence[Tokens], count: int) -> int:
    """The number of leading tokens that all answers share, given that they share the first `count`."""
    shortest = min(map(len, answers))
    while count < shortest and all(answer[count] == answers[0][count] for answer in answers):
        count += 1
    return count


def common_prefix(texts: Sequence[str], known: int = 0) -> str:
    """The longest common prefix of the texts, given that they share the first `known` characters."""
    smallest, largest = min(texts), max(texts)  # in lexical order: all others share what these two share
    if smallest == largest:
        return smallest
    for i, (a, b) in enumerate(zip(smallest[known:], largest[known:], strict=False), start=known):
        if a != b:
            return smallest[:i]
    return smallest
