"""Every error that this package raises on purpose, one tree.

    W2SError
    ├── ConfigurationError       the operator's mistake; the server refuses to start
    ├── RequestError             the caller's mistake (400); `param` names the field
    │   ├── ContextLengthError   prompt and answer do not fit the model (400, context_length_exceeded)
    │   │   └── UpstreamContextLengthError   so says a provider
    │   ├── PairContextLengthError        an answer has become longer than a pair can read (400)
    │   └── UnknownModelError    no such served model (404)
    ├── OverloadedError          the queue is full (429); `retry_after_s`
    ├── UnavailableError         loading, or no worker alive (503); `retry_after_s`
    │   └── ShuttingDownError    draining (503)
    ├── DeadlineError            the request's time is spent (504)
    ├── UpstreamError            a remote model's provider failed this request (502)
    │   ├── UpstreamRefusedError   it understood the call and will not do it (502)
    │   └── UpstreamTimeoutError   it did not answer in time (504)
    └── WorkerError              a device failed this request (500)

`server/errors.py` translates each of them once.
"""

from __future__ import annotations


class W2SError(Exception):
    """Base of all errors raised on purpose; its text may be shown to the caller."""


class ConfigurationError(W2SError):
    """The configuration cannot be served; the message names the key."""


class RequestError(W2SError):
    """The caller's request cannot be honoured. `param` is the path of the field at fault, or None."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(RequestError):
    """Prompt plus answer exceed what the model can hold. Gateways match on the message's first sentence."""

    def __init__(self, limit: int, prompt_tokens: int, max_tokens: int, param: str) -> None:
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, you requested "
            f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in the prompt, {max_tokens} for the answer). "
            "Please reduce the length of the prompt or max_tokens.",
            param,
        )


class PairContextLengthError(RequestError):
    """Prompt and answer, in tokens of the pair's model `name`, exceed the `limit` of what it can read."""

    def __init__(self, name: str, limit: int, prompt_tokens: int, answer_tokens: int) -> None:
        super().__init__(
            f"The answer has outgrown the pair: {prompt_tokens} + {answer_tokens} tokens exceed the {limit} tokens of "
            f"{name}. Please lower max_tokens.",
            "max_tokens",
        )
        self.limit = limit
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens


class UpstreamContextLengthError(ContextLengthError):
    """A provider's own word that the request does not fit; its numbers are in the message, where it told them."""

    def __init__(self, message: str, param: str | None = None) -> None:
        RequestError.__init__(self, message, param)


class UnknownModelError(RequestError):
    """No served model has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The model `{name}` does not exist.", "model")


class OverloadedError(W2SError):
    """The queue is full. Try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(W2SError):
    """Nobody can serve this now. Try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ShuttingDownError(UnavailableError):
    """This server is leaving: another replica may answer now, or this one once it is started again."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down.", retry_after_s=5)


class DeadlineError(W2SError):
    """The request did not finish within its time."""


class UpstreamError(W2SError):
    """A remote model's provider failed this request, retries included. The text holds no credentials."""


class UpstreamRefusedError(UpstreamError):
    """The provider answered 4xx: it does not know the model, or a field of the call."""


class UpstreamTimeoutError(UpstreamError):
    """The provider did not answer in time, retries included."""


class WorkerError(W2SError):
    """A device failed this request; the worker may live on."""
