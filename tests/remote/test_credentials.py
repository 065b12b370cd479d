"""The API key goes to the provider and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import traceback

import pytest

from tests.remote.conftest import KEY, World
from tests.remote.misbehaving import SOON, Behaviour, Call, Connection, answer
from w2s_core.config import ProviderConfig
from w2s_core.errors import ConfigurationError, UpstreamError
from w2s_core.remote.http_client import read_api_key
from w2s_core.remote.provider import Provider


def echo(status: int, shape: str) -> Behaviour:
    """Sends our Authorization header back: in an error's message, as a page, in a header, in the status line."""

    async def behave(connection: Connection, call: Call) -> None:
        held = call.headers["authorization"]
        if shape == "reason":
            await connection.send(f"HTTP/1.1 {status} {held}\r\ncontent-length: 0\r\n\r\n".encode())
            return
        body = {
            "error": answer({"error": {"message": f"bad header {held!r}", "code": held}}, status),
            "bare": answer({"error": {"message": f"no such key: {held.removeprefix('Bearer ')}"}}, status),
            "detail": answer({"detail": held}, status),
            "header": answer({}, status, www_authenticate=held),
            "page": answer(f"<html>{held}".encode(), status),
        }[shape]
        await body(connection, call)

    return behave


@pytest.mark.parametrize("shape", ["error", "bare", "detail", "header", "reason", "page"])
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
async def test_a_provider_that_echoes_the_key(
    world: World, caplog: pytest.LogCaptureFixture, status: int, shape: str
) -> None:
    server = await world.server(otherwise=echo(status, shape))
    provider = await world.provider(server, max_retries=1, breaker_failures=1, api_key_env="LLM_KEY")
    with caplog.at_level(logging.DEBUG):
        try:
            await asyncio.wait_for(provider.post("/completions", {}), SOON)
        except Exception as error:
            shown = [str(error), repr(error), "".join(traceback.format_exception(error))]
        else:
            assert (status, shape) in [(200, "detail"), (200, "header")], "an odd answer, but an object"
            shown = []
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}", "it did get the key"
    shown += [caplog.text, repr(provider), str(provider), repr(provider.config), repr(world.attempts)]
    assert not [text for text in shown if KEY in text]


async def test_connections_that_break_do_not_show_it_either(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def send_back_and_break(connection: Connection, call: Call) -> None:
        await connection.send(call.headers["authorization"].encode() + b"\r\n\r\n")
        connection.writer.close()

    provider = await world.provider(await world.server(otherwise=send_back_and_break), max_retries=0)
    with caplog.at_level(logging.DEBUG), pytest.raises(UpstreamError) as caught:
        await asyncio.wait_for(provider.post("/completions", {}), SOON)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in caplog.text


async def test_without_a_key_none_is_sent(world: World) -> None:
    server = await world.server()
    async with Provider("llama", ProviderConfig(base_url=server.url, model="m")) as provider:
        await asyncio.wait_for(provider.get("/models"), SOON)
    assert "authorization" not in server.calls[0].headers


def test_the_key_comes_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_KEY", f" {KEY}\n")
    assert read_api_key("LLM_KEY", "large_models.llama.api_key_env") == KEY
    assert read_api_key(None, "large_models.llama.api_key_env") is None
    assert KEY not in repr(ProviderConfig(base_url="http://host/v1", model="m", api_key_env="LLM_KEY"))


@pytest.mark.parametrize("value", [None, "", "  ", "secret\x00", "secret\nsecret", "secrét", "secret key"])
def test_a_key_that_cannot_be_one_is_refused_unseen(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("LLM_KEY", raising=False)
    if value is not None and "\x00" not in value:
        monkeypatch.setenv("LLM_KEY", value)
    with pytest.raises(
        ConfigurationError, match=r"large_models\.llama\.api_key_env: set the environment variable LLM_KEY"
    ) as caught:
        read_api_key("LLM_KEY", "large_models.llama.api_key_env")
    assert "secr" not in str(caught.value)
