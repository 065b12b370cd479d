"""Baseline: the published search (github.com/ZHZisZZ/weak-to-strong-search, `decoders/cbs.py`) on plain transformers.

It keeps what makes the published code slow: one request at a time; the prompt run W·K times; one `DynamicCache` of W·K
whole rows, gathered after every chunk; `softmax` and `torch.multinomial` over the vocabulary; and after every chunk
both models of the pair run again over every whole candidate, padded, with logits and `log_softmax` at every position.

Where the published code leaves the algorithm open it follows this engine, so that with `shared_noise` it returns the
engine's own answers: finished hypotheses are carried once, equal successors are merged, and a pair with the same
vocabulary reads the large model's tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from heapq import nlargest
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from w2s_core.search.randomness import copy_key, root_key, successor_key, uniform
from w2s_core.worker.inverse_transform import inverse_transform

Tokens = tuple[int, ...]
# (probabilities (rows, vocab), key of each row, position) → (rows,)
Draw = Callable[[torch.Tensor, Sequence[int], int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Beam:
    """A hypothesis. `row` is its row in the cache; `tokens` do not include the EOS token."""

    tokens: Tokens = ()
    key: int = 0
    ended: bool = False
    score: float = 0.0
    row: int = 0


@dataclass(slots=True)
class PhaseTimer:
    """Measures seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Model:
    """A causal LM and its tokenizer, as transformers loads them."""

    def __init__(self, folder: str, dtype: str = "float32") -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.lm: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.lm.train(mode=False)

    @property
    def eos(self) -> frozenset[int]:
        """The EOS token ids."""
        ids = self.lm.generation_config.eos_token_id
        ids = self.lm.config.eos_token_id if ids is None else ids
        return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)

    def encode(self, text: str) -> Tokens:
        """The token ids of a prompt; of an empty one BOS, or EOS if there is none."""
        tokenizer = self.tokenizer
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return tuple(tokenizer(text)["input_ids"]) or (start,)

    def decode(self, tokens: Tokens) -> str:
        """The text of the tokens, without an incomplete character at its end."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.rstrip("\ufffd")

    def logprobs(self, prompt: Tokens, answers: Sequence[Tokens]) -> list[float]:
        """log p(answer | prompt) of each answer in nats, without a KV cache, in one padded batch."""
        longest = max(map(len, answers))
        rows = [prompt + answer + (0,) * (longest - len(answer)) for answer in answers]
        lengths = torch.tensor([len(prompt) + len(answer) for answer in answers])
        ids = torch.tensor(rows)
        positions = torch.arange(ids.shape[1])
        logits = self.lm(input_ids=ids, attention_mask=(positions < lengths[:, None]).long()).logits.float()
        logps = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
        mask = (positions[1:] >= len(prompt)) & (positions[1:] < lengths[:, None])
        sums: list[float] = (logps * mask).sum(1).tolist()
        return sums


class Pair:
    """A pair. `template`: as `PairConfig.prompt_template` for completions, None is the raw prompt."""

    def __init__(self, tuned: Model, untuned: Model, template: str | None) -> None:
        self._models = (tuned, untuned)
        self._template = template

    def score(self, large: Model, prompt: str, answers: Sequence[Beam]) -> list[float]:
        """log π_tuned − log π_untuned of each whole answer, in nats."""
        text = prompt if self._template is None else self._template.replace("{prompt}", prompt)
        tuned, untuned = (
            model.logprobs(model.encode(text), [_encode(model, large, y) for y in answers]) for model in self._models
        )
        return [t - u for t, u in zip(tuned, untuned, strict=True)]


def _encode(model: Model, large: Model, y: Beam) -> Tokens:
    if model.tokenizer.get_vocab() == large.tokenizer.get_vocab():
        answer = y.tokens
    else:
        answer = tuple(model.tokenizer(large.decode(y.tokens), add_special_tokens=False)["input_ids"])
    eos = model.tokenizer.eos_token_id
    return (*answer, eos) if y.ended and eos is not None else answer


def multinomial(probabilities: torch.Tensor, _keys: Sequence[int], _position: int) -> torch.Tensor:
    """Samples as the published code does."""
    return torch.multinomial(probabilities, num_samples=1)[:, 0]


def shared_noise(probabilities: torch.Tensor, keys: Sequence[int], position: int) -> torch.Tensor:
    """The engine's draw with the engine's noise: the same numbers, hence the same tokens."""
    return inverse_transform(probabilities, [uniform(key, position) for key in keys])


class NaiveSearch:
    """The search of one prompt. W = `w`, K = `k`, L = `length`; `timer` has the seconds by phase."""

    def __init__(self, large: Model, pair: Pair, *, w: int, k: int, length: int, temperature: float = 1.0) -> None:
        self.timer = PhaseTimer()
        self._large = large
        self._pair = pair
        self._w, self._k, self._length = w, k, length
        self._temperature = temperature
        self._cache = DynamicCache()

    @torch.inference_mode()
    def run(self, prompt: Tokens, budget: int, *, seed: int = 0, draw: Draw = multinomial) -> Beam:
        """Returns the best answer of at most `budget` tokens."""
        self._cache = DynamicCache()
        root = root_key(seed)
        text = self._large.tokenizer.decode(prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        beam = [Beam(key=copy_key(root, i)) for i in range(self._w)]
        while budget > 0 and not all(y.ended for y in beam):
            live = [y for y in beam if not y.ended]
            candidates = _distinct(self._sample(prompt, live, min(self._length, budget), draw))
            with self.timer.phase("scoring"):
                scores = self._pair.score(self._large, text, candidates)
            scored = [replace(y, score=score) for y, score in zip(candidates, scores, strict=True)]
            beam = nlargest(self._w, [y for y in beam if y.ended] + scored, key=lambda y: y.score)
            budget -= self._length
        return beam[0]

    def _sample(self, prompt: Tokens, live: Sequence[Beam], length: int, draw: Draw) -> list[Beam]:
        """K successors of each live hypothesis, as rows of one batch."""
        parents = [(y, index) for y in live for index in range(self._k)]
        keys = [successor_key(y.key, len(y.tokens), index) for y, index in parents]
        position = len(live[0].tokens)  # the same for all: a live hypothesis has had full chunks only
        if position == 0:
            inputs = torch.tensor([prompt] * len(parents))
        else:
            with self.timer.phase("gathering the cache"):
                self._cache.batch_select_indices(torch.tensor([y.row for y, _ in parents]))
            inputs = torch.tensor([[y.tokens[-1]] for y, _ in parents])
        new: list[list[int]] = [[] for _ in parents]
        ended = [False] * len(parents)
        for step in range(length):
            inputs = self._next(inputs, keys, position + step, draw)
            for row, token in enumerate(inputs[:, 0].tolist()):
                ended[row] = ended[row] or token in self._large.eos
                if not ended[row]:
                    new[row].append(token)
            if all(ended):
                break
        return [Beam(y.tokens + tuple(new[row]), keys[row], ended[row], row=row) for row, (y, _) in enumerate(parents)]

    def _next(self, inputs: torch.Tensor, keys: Sequence[int], position: int, draw: Draw) -> torch.Tensor:
        """(rows, 1) every row's next token; rows that have ended are computed too, as in `generate`."""
        with self.timer.phase("prompt" if position == 0 else "decoding"):
            output = self._large.lm(input_ids=inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        with self.timer.phase("drawing"):
            probabilities = (output.logits[:, -1].float() / self._temperature).softmax(-1)
            return draw(probabilities, keys, position)[:, None]


def _distinct(candidates: Sequence[Beam]) -> list[Beam]:
    first: dict[tuple[Tokens, bool], Beam] = {}
    for y in candidates:
        first.setdefault((y.tokens, y.ended), y)
    return list(first.values())
