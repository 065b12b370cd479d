"""The protocols that others implement: `LargeModel`, which proposes, and `Scorer`, which scores.

Each has a local, a remote and a fake implementation, and a session per prompt: `Proposals` and `Scoring`. A session
learns which hypotheses survived from the next call: `propose(live)` and `score(candidates)` name every hypothesis that
still matters, and the session may free what is not an ancestor of them. Every hypothesis carries its tokens, so a
search can continue in a new session anywhere.

The search is algorithm 1 of Zhou et al. 2024 (arXiv:2405.19262, section 4).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from w2s_core.types import (
    ChatPrompt,
    Grammar,
    Guidance,
    Hypothesis,
    Prompt,
    PromptLogprobs,
    ProviderUsage,
    SamplingParams,
    Score,
    Tokens,
    TokenText,
)


class Decoder(Protocol):
    """Decodes token ids to text; bytes that are not, or not yet, a character become U+FFFD."""

    @property
    def verbatim(self) -> Decoder:
        """The same decoder, which keeps special tokens in its texts (`skip_special_tokens=False`)."""
        ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class TokenDecoder(Decoder, Protocol):
    """A decoder that also knows the text and bytes of single tokens."""

    def token_text(self, token: int) -> TokenText: ...


class Tokenizer(TokenDecoder, Protocol):
    """Encodes and decodes text. `w2s_core.text.tokenizer.HFTokenizer` documents each member."""

    @property
    def size(self) -> int: ...
    def encode(self, text: str, *, special_tokens: bool) -> Tokens: ...
    def encode_chat(self, prompt: ChatPrompt) -> Tokens: ...
    def convert_ids_to_tokens(self, tokens: Sequence[int]) -> list[str]: ...


class Proposer(Protocol):
    """Draws successors of hypotheses: all that the search needs of a large model."""

    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        """Returns k successors of each hypothesis in `beam`, each at most `length` tokens longer.

        They are in the order of their parents, k for each. Hypotheses that are not in `beam` may be freed.
        """
        ...


class Proposals(Proposer, Protocol):
    """One prompt's session with a large model. It owns the prompt's KV cache, where there is one.

    An implementation draws tokens, and `SuccessorBuilder` turns them into hypotheses with text and finish reason:

        async def propose(self, beam, *, k, length):
            self._successors.prune(beam)
            drawn = [await self._draw(y.tokens, k, length) for y in beam]  # k samples of π_base(· | x, y') each
            return [self._successors.build(y, i, s.tokens, s.logprobs, ended=s.ended)
                    for y, samples in zip(beam, drawn) for i, s in enumerate(samples)]
    """

    @property
    def sampled_tokens(self) -> int:
        """Tokens drawn so far, those of pruned hypotheses included."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in the large model's tokens; 0 where only a provider can count it and has not yet."""
        ...

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that need not be computed because their KV was cached; 0 where that is not known."""
        ...

    @property
    def provider_usage(self) -> ProviderUsage:
        """Calls and tokens that a provider has delivered so far."""
        ...

    def grow(self, hypothesis: Hypothesis, *, length: int) -> AsyncGenerator[Hypothesis]:
        """Streams the successor that `propose([hypothesis], k=1, length=length)` returns, ever longer."""
        ...


class LargeModel(Protocol):
    """The large model π_base, frozen.

    A request that is served makes these calls:

        large.check(sampling)
        prompt = large.encode(TextPrompt("Once upon a time"))
        async with large.open(prompt, sampling, rows=16) as proposals:
            candidates = await proposals.propose([Hypothesis(key=root_key(seed))], k=16, length=5)
            print([y.text for y in candidates])

    `LocalLargeModel` runs in a worker. `RemoteLargeModel` calls `/v1/completions` as OpenAI
    (https://platform.openai.com/docs/api-reference/completions) and vLLM
    (https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html) document it.
    """

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together. Raises UnavailableError while a provider has not been reached."""
        ...

    @property
    def decoder(self) -> TokenDecoder:
        """Decodes the tokens of its hypotheses."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer; None where only a provider has it."""
        ...

    @property
    def tool_format(self) -> str | None:
        """The name of its tool call format in `structured.tool_formats.TOOL_FORMATS`; None where that is not known."""
        ...

    @property
    def reasoning_format(self) -> str | None:
        """The name in `text.reasoning.REASONING_FORMATS` of how it marks its thoughts; None where that is not known."""
        ...

    @property
    def default_sampling(self) -> SamplingParams:
        """What its maker recommends, for requests and served models that do not say otherwise."""
        ...

    def check(self, sampling: SamplingParams) -> None:
        """Raises RequestError, naming the field, for sampling parameters that this model does not support."""
        ...

    @property
    def supports_chunked_grammar(self) -> bool:
        """Whether an answer that follows a grammar can be drawn chunk by chunk."""
        ...

    async def check_grammar(self, grammar: Grammar) -> Grammar:
        """Returns the grammar in the form in which `SamplingParams.grammar` must have it for `open`.

        Raises RequestError, naming its field, for a grammar that is malformed, not supported or too complex.
        """
        ...

    def encode(self, prompt: Prompt) -> Tokens:
        """Encodes the prompt for `open`: as token ids, special tokens included, where `exposes_token_ids`.

        Raises RequestError (a chat template that refuses) and UnavailableError (a provider that is down).
        """
        ...

    @property
    def exposes_token_ids(self) -> bool:
        """Whether `encode` and hypotheses have the model's own token ids, not ids for `open` and `decoder` alone."""
        ...

    def count_tokens(self, prompt: Tokens) -> int:
        """Tokens of an encoded prompt; 0 where only a provider can count them."""
        ...

    def longest_answer(self, drawn: int, chunk_length: int | None) -> int:
        """The most tokens that an answer may have if at most `drawn` tokens are to be drawn for it.

        It is `drawn` itself unless chunks are drawn longer than they are kept. The answer is drawn in chunks of
        `chunk_length` tokens, or, where that is None, by `Proposals.grow`.
        """
        ...

    def decode_prompt(self, prompt: Prompt) -> Prompt:
        """Decodes a TokenPrompt to a TextPrompt, so that pairs can read it; returns other prompts as they are."""
        ...

    def prompt_text(self, prompt: Tokens) -> str:
        """The text of an encoded prompt, special tokens included."""
        ...

    def extend_prompt(self, prompt: Tokens, answer: Tokens, text: str = "") -> Tokens:
        """Encodes what follows an encoded prompt: the tokens of an answer's beginning, then `text`."""
        ...

    def open(self, prompt: Tokens, sampling: SamplingParams, *, rows: int) -> AbstractAsyncContextManager[Proposals]:
        """Opens a session for one prompt, of at most `rows` sequences at once; leaving it frees them within one step.

        Where `sampling.logprobs` asks for alternatives, its hypotheses have them.
        """
        ...

    async def prompt_logprobs(self, prompt: Tokens, *, top: int) -> PromptLogprobs:
        """Returns the log-probabilities of the prompt's own tokens, with the `top` most likely ones at each position.

        Raises RequestError("…", "prompt_logprobs") where they are not available.
        """
        ...


class Scoring(Protocol):
    """One prompt's session with a scorer.

    The candidates' texts have neither special tokens nor stop strings, whatever the request shows of them
    (`Hypothesis.as_scored`). Scores must be finite.

    An implementation can be this short (`scored_tokens`, `provider_usage` and an empty `prefetch` aside):

        async def score(self, candidates):
            texts = [self._prompt + y.text for y in candidates]
            tuned, untuned = await self._tuned.logprobs(texts), await self._untuned.logprobs(texts)
            return [Score(t - u) for t, u in zip(tuned, untuned, strict=True)]  # nats, in the order of `candidates`
    """

    @property
    def scored_tokens(self) -> int:
        """Tokens run through the pair so far, both models together."""
        ...

    @property
    def provider_usage(self) -> ProviderUsage:
        """Calls and tokens that providers have delivered so far."""
        ...

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        """Announces candidates of the next `score`, so that work on them can start early.

        Returns when the session can take another call, whether or not they are scored by then. Candidates that are not
        named may be freed.
        """
        ...

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        """Returns log π_tuned(y'|x) − log π_untuned(y'|x) of each whole answer so far, in nats, in the same order."""
        ...


class Scorer(Protocol):
    """Scores hypotheses: a pair (π_tuned, π_untuned), or a weighted sum of several (paper, section 4).

    A scorer that prefers short answers:

        class Brevity:
            def check(self, prompt, max_tokens): return max_tokens
            @asynccontextmanager
            async def open(self, prompt): yield BrevityScoring()  # its `score` returns [Score(-len(y.text)) for y in …]

    `scorers.likelihood.LikelihoodScorer` is a complete one.
    """

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        """Returns how many tokens of answer, at most `max_tokens`, can be scored after this prompt.

        Raises RequestError where none can.
        """
        ...

    def open(self, prompt: Prompt) -> AbstractAsyncContextManager[Scoring]:
        """Opens a session for one prompt; leaving the context frees what it holds."""
        ...


class ProxyTuner(Protocol):
    """Proxy tuning (EFT) of one large model: pairs change the logits of every draw (`w2s_core.worker.proxy_tuning`)."""

    def tune(self, guidance: Guidance, prompt: Prompt, max_tokens: int, field: str) -> tuple[LargeModel, int]:
        """Returns the model steered by the pairs of `guidance`, and how many tokens of answer, at most `max_tokens`, it
        may then have.

        `prompt` is what the pairs read. Raises RequestError, naming `field`, for a pair that cannot steer this model,
        and RequestError where the pairs' contexts have no room for an answer.
        """
        ...
