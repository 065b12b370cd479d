"""The error tree: what this package raises on purpose, with the HTTP status that the server answers.

    W2SError
    ├── ConfigurationError                     the configuration is wrong; the server refuses to start
    ├── RequestError                           the request is invalid (400); `param` names the field
    │   ├── ContextLengthError                 prompt and answer exceed the context (400, context_length_exceeded)
    │   │   └── UpstreamContextLengthError     the same, found by a provider
    │   ├── PairContextLengthError             an answer exceeds a pair's context; the engine cuts it
    │   └── UnknownModelError                  no such served model (404)
    ├── OverloadedError                        the queue is full, or an API key is at a limit (429); `retry_after_s`
    ├── UnavailableError                       loading, no worker alive, or a provider down (503); `retry_after_s`
    │   └── ShuttingDownError                  graceful shutdown has begun (503); `retry_after_s`
    ├── DeadlineError                          the request took longer than it may (504)
    ├── UpstreamError                          a remote model's provider failed the request (502)
    │   ├── UpstreamRefusedError               it answered 4xx (502)
    │   └── UpstreamTimeoutError               it did not answer in time (504)
    ├── WorkerError                            a worker process failed the request (500)
    └── ScorerError                            a scorer in Python failed the request (500)

`server/errors.py` maps these to responses. Modules may define subclasses for their own use (`FetchError`).
"""

from __future__ import annotations

from collections.abc import Mapping


class W2SError(Exception):
    """Base class of all errors raised on purpose. The message may be shown to the client."""


class ConfigurationError(W2SError):
    """The configuration cannot be served. The message names the key."""


class UnsupportedModelError(ConfigurationError):
    """A model that cannot run here as it is: a package is to be installed, or the configuration to be changed."""


class RequestError(W2SError):
    """The request is invalid. `param` is the path of the field at fault, or None."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(RequestError):
    """Prompt and answer exceed the model's context of `limit` tokens.

    Gateways match on the first sentence of the message, which is OpenAI's.
    """

    def __init__(self, limit: int, prompt_tokens: int, max_tokens: int, param: str) -> None:
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, you requested "
            f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in the prompt, {max_tokens} for the answer). "
            "Please reduce the length of the prompt or max_tokens.",
            param,
        )


class UpstreamContextLengthError(ContextLengthError):
    """A provider refused the request as too long. The message is the provider's, with the numbers if it gave them."""

    def __init__(self, message: str, param: str | None = None) -> None:
        RequestError.__init__(self, message, param)


class PairContextLengthError(RequestError):
    """Answers exceed the context of the model `name` of a pair or another scorer, all counted in tokens of that model.

    This can happen in the middle of a search, because a scorer may need more tokens for a text than the large model;
    the engine then cuts the answers. `lengths` are the tokens of each answer by its text and whether the model ended
    it, `room` is how many fit behind the prompt.
    """

    def __init__(
        self, name: str, limit: int, prompt_tokens: int, lengths: Mapping[tuple[str, bool], int], kind: str = "pair"
    ) -> None:
        super().__init__(
            f"The answer has outgrown the {kind}: {prompt_tokens} + {max(lengths.values())} tokens exceed the {limit} "
            f"tokens of {name}.",
            "max_tokens",
        )
        self.limit = limit
        self.prompt_tokens = prompt_tokens
        self.lengths = lengths
        self.room = limit - prompt_tokens


class UnknownModelError(RequestError):
    """No served model has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The model `{name}` does not exist.", "model")


class OverloadedError(W2SError):
    """The admission queue is full, or an API key has reached one of its limits (429).

    The client may retry after `retry_after_s` seconds.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(W2SError):
    """The request cannot be served at the moment. The client may retry after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ShuttingDownError(UnavailableError):
    """The server is shutting down. Another replica may serve the request, or this one after its restart."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down.", retry_after_s=5)


class DeadlineError(W2SError):
    """The request did not finish within its time limit."""


class UpstreamError(W2SError):
    """A remote model's provider failed the request, retries included. The message holds no credentials."""


class UpstreamRefusedError(UpstreamError):
    """The provider answered 4xx: it does not know the model, or a field of the call."""


class UpstreamTimeoutError(UpstreamError):
    """The provider did not answer in time, retries included."""


class WorkerError(W2SError):
    """A worker process failed the request. It may still be alive and serve others."""


class ScorerError(W2SError):
    """A scorer in Python raised, or returned something that is no score. What it raised is the error's cause, which
    clients are not told."""
