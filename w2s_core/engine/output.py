"""What of the beam is final, as events: text, and where it is asked for the tokens that the text is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile

from w2s_core.engine.events import ChoiceFinished, TextCommitted, TokenInfo
from w2s_core.interfaces import TokenDecoder
from w2s_core.text.offsets import OffsetTracker, TokenSpan
from w2s_core.text.stop_strings import partial_stop_length
from w2s_core.types import Alternatives, Hypothesis, PromptLogprobs, SamplingParams, Tokens


class ChoiceWriter:
    """Sends text once it is final: what every hypothesis still in the beam agrees on, behind which no stop string
    can begin any more."""

    def __init__(self, index: int, stops: Sequence[str]) -> None:
        self.index = index
        self._stops = stops
        self._sent = 0  # characters

    def commit(self, beam: Sequence[Hypothesis]) -> list[TextCommitted]:
        """What is final now and was not before: one event or none."""
        return self._send(self._agreed(beam))

    def finish(self, answer: Hypothesis, *, guided: bool) -> list[TextCommitted | ChoiceFinished]:
        """The rest of the answer, and that this was it."""
        return [*self._send(answer.text), ChoiceFinished(self.index, answer, guided)]

    def _agreed(self, beam: Sequence[Hypothesis]) -> str:
        return common_prefix([self._visible(y) for y in beam])

    def _visible(self, y: Hypothesis) -> str:
        return y.text if y.finished else y.text[: len(y.text) - partial_stop_length(y.text, self._stops)]

    def _send(self, text: str, tokens: Sequence[TokenInfo] = ()) -> list[TextCommitted]:
        """`text` is the answer so far."""
        new = text[self._sent :]
        self._sent += len(new)
        return [TextCommitted(self.index, new, tuple(tokens))] if new else []


class TokenWriter(ChoiceWriter):
    """Sends text by whole tokens, and those tokens with it. Beams that agree on a text must agree on its tokens too."""

    def __init__(self, index: int, sampling: SamplingParams, decoder: TokenDecoder) -> None:
        super().__init__(index, sampling.stop)
        self._decoder = decoder
        self._placer = OffsetTracker(decoder, verbatim=not sampling.skip_special_tokens)
        self._read = 0  # tokens on which the beam agrees
        self._waiting: list[TokenSpan] = []

    def commit(self, beam: Sequence[Hypothesis]) -> list[TextCommitted]:
        text = self._agreed(beam)
        agreed = _common_tokens([y.tokens for y in beam], self._read)
        self._waiting += self._placer.feed(beam[0].tokens[self._read : agreed])
        self._read = max(self._read, agreed)
        ready = _whole(self._waiting, len(text))
        if not ready:
            return []
        self._waiting = self._waiting[len(ready) :]
        return self._send(text[: ready[-1].end], self._told(ready, beam[0]))

    def finish(self, answer: Hypothesis, *, guided: bool) -> list[TextCommitted | ChoiceFinished]:
        committed = self.commit([answer])
        length = len(answer.text)
        if answer.ended and answer.ending is not None:
            self._waiting += self._placer.feed([answer.ending])
        rest = [place for place in [*self._waiting, *self._placer.flush(length)] if place.number < answer.length]
        tokens = tuple(self._told(rest, answer))
        text = self._send(answer.text, tokens)
        return [*committed, *text, ChoiceFinished(self.index, answer, guided, () if text else tokens)]

    def _told(self, places: Iterable[TokenSpan], y: Hypothesis) -> list[TokenInfo]:
        return [
            told(
                self._decoder,
                replace(place, start=min(place.start, len(y.text))),
                y.logprobs[place.number] if place.number < len(y.logprobs) else None,
                y.alternatives[place.number] if place.number < len(y.alternatives) else (),
            )
            for place in places
        ]


def placed_prompt(decoder: TokenDecoder, prompt: Tokens, found: PromptLogprobs | None) -> list[TokenInfo]:
    """The prompt's tokens in the text that they decode to, with what is known of their log-probabilities."""
    placer = OffsetTracker(decoder)
    places = [*placer.feed(prompt), *placer.flush(len(decoder.decode(prompt)))]
    if found is None:
        return [told(decoder, place, None, ()) for place in places]
    first, *others = places
    return [
        told(decoder, first, None, ()),
        *(
            replace(told(decoder, place, nats, alternatives), rank=rank)
            for place, nats, rank, alternatives in zip(
                others, found.logprobs, found.ranks, found.alternatives, strict=True
            )
        ),
    ]


def told(decoder: TokenDecoder, place: TokenSpan, logprob: float | None, alternatives: Alternatives) -> TokenInfo:
    """A token as events carry it. Among the alternatives it has the text that it has in its own place."""
    pieces = [place.token_text if token == place.token else decoder.token_text(token) for token, _ in alternatives]
    named = tuple((token, piece, nats) for (token, nats), piece in zip(alternatives, pieces, strict=True))
    return TokenInfo(place.token, place.token_text, place.start, logprob, alternatives=named)


def _whole(places: Sequence[TokenSpan], length: int) -> list[TokenSpan]:
    """The first of these tokens that make up whole characters, of the first `length` ones."""
    ready = list(takewhile(lambda place: place.end <= length, places))
    following = places[len(ready)] if len(ready) < len(places) else None
    # A token without text may yet be cut off, with a stop string behind it.
    while ready and (ready[-1].start == ready[-1].end or (following and following.start < ready[-1].end)):
        following = ready.pop()
    return ready


def _common_tokens(answers: Sequence[Tokens], known: int) -> int:
    """On how many tokens all agree, who agree on the first `known`."""
    shortest = min(map(len, answers))
    while known < shortest and all(answer[known] == answers[0][known] for answer in answers):
        known += 1
    return known


def common_prefix(texts: Sequence[str]) -> str:
    """The text on which all agree."""
    low, high = min(texts), max(texts)
    for i, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return low[:i]
    return low
