"""Compressed request bodies: inflates gzip and deflate as they arrive, within `server.max_body_bytes`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.policy import Policy
from server.http.middleware import body_too_large

# By `Content-Encoding`, zlib's number for the format.
_FORMATS: Mapping[str, int] = {
    "gzip": zlib.MAX_WBITS | 16,
    "x-gzip": zlib.MAX_WBITS | 16,
    "deflate": zlib.MAX_WBITS,
}
_ACCEPTED = {"accept-encoding": "gzip, deflate"}


class BodyDecompression:
    """Inflates the body of a request with a `Content-Encoding`; one that it does not know is answered 415.

    `receive` raises HTTPException, so that nothing is refused before the API key is checked. No more is inflated than
    the limit allows, whatever a body claims to hold.
    """

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app = app
        self.policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = Headers(scope=scope).get("content-encoding", "").strip().lower() if scope["type"] == "http" else ""
        if encoding in ("", "identity"):
            await self.app(scope, receive, send)
            return
        inflater = _Inflater(encoding, self.policy.config.max_body_bytes)

        async def receive_inflated() -> Message:
            message = await receive()
            if message["type"] != "http.request":
                return message
            body = inflater.feed(message.get("body", b""), last=not message.get("more_body", False))
            return {**message, "body": body}

        await self.app(scope, receive_inflated, send)


class _Inflater:
    """Inflates one body. A gzip body may consist of several members."""

    def __init__(self, encoding: str, limit: int) -> None:
        self._encoding = encoding
        self._limit = limit
        self._size = 0  # bytes inflated so far
        self._member: zlib._Decompress | None = None  # the one that has begun and not ended

    def feed(self, data: bytes, *, last: bool) -> bytes:
        """Inflates more of the body. Raises HTTPException: 415, 413 or 400."""
        if self._encoding not in _FORMATS:
            message = f"This `Content-Encoding` is not supported: {self._encoding}. Send gzip, deflate, or none."
            raise HTTPException(415, message, _ACCEPTED)
        inflated = bytearray()
        while data:
            member = self._member or zlib.decompressobj(_FORMATS[self._encoding])
            try:
                inflated += member.decompress(data, self._limit + 1 - self._size - len(inflated))
            except zlib.error:
                raise self._invalid() from None
            if self._size + len(inflated) > self._limit:
                raise body_too_large(self._limit)
            self._member, data = (None, member.unused_data) if member.eof else (member, b"")
        if last and self._member is not None:
            raise self._invalid()
        self._size += len(inflated)
        return bytes(inflated)

    def _invalid(self) -> HTTPException:
        return HTTPException(400, f"The body is not valid {self._encoding}, which its `Content-Encoding` says.")
