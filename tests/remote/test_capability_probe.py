"""The capability probe: whatever a provider answers, it is probed again until its capabilities are known."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.remote.fake_provider import MODEL, FakeProvider
from w2s_core.errors import ConfigurationError, UnavailableError, UpstreamError
from w2s_core.remote.capability_probe import CapabilityProbe, listed_context_length
from w2s_core.text.tokenizer import HFTokenizer

SECRET = "sk-secret"  # a provider may quote our key, and an unexpected error the provider
FAILURES: dict[str, Callable[[], Exception]] = {
    "down": lambda: UnavailableError("down", 1),
    "broken": lambda: UpstreamError("broken"),
    "wrong": lambda: ConfigurationError("large_models.far.context_length: set it."),
    "unexpected": lambda: TypeError(SECRET),
}


def failing_probe(tokenizer: HFTokenizer, *errors: Exception) -> tuple[CapabilityProbe[int], list[float]]:
    """A probe that finds 7 after these failures. The list collects its pauses."""
    failures, pauses = iter(errors), list[float]()

    async def probe() -> int:
        for failure in failures:
            raise failure
        return 7

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    return CapabilityProbe(FakeProvider(tokenizer), probe, sleep), pauses  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", FAILURES)
async def test_no_failure_ends_the_probing(tokenizer: HFTokenizer, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    part, pauses = failing_probe(tokenizer, UnavailableError("down", 1), *[FAILURES[kind]()] * 6)
    with caplog.at_level(logging.WARNING):
        await part.start()
        with pytest.raises(UnavailableError):
            _ = part.capabilities
        assert part._retrying is not None
        await part._retrying
    assert part.ready
    assert part.capabilities == 7
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert SECRET not in caplog.text
    assert len([record for record in caplog.records if record.name.endswith("capability_probe")]) == 7
    await part.stop()


async def test_an_unexpected_failure_does_not_keep_the_server_from_starting(tokenizer: HFTokenizer) -> None:
    part, _ = failing_probe(tokenizer, TypeError("unhashable type: 'list'"))
    await part.start()
    with pytest.raises(UnavailableError, match="an answer that cannot be used"):
        _ = part.capabilities
    assert part._retrying is not None
    await part._retrying
    assert part.ready
    await part.stop()


NOT_A_LENGTH = (None, "4096", 0, -1, 5.0, True, [], {})


@pytest.mark.parametrize(
    ("models", "length"),
    [
        ([{"id": MODEL, "max_model_len": 9}], 9),
        ([{"id": [1]}, {"id": {}}, {"id": MODEL, "max_model_len": 9}], 9),
        ([{"id": MODEL, "parent": "base"}, {"id": "base", "max_model_len": 8}], 8),
        ([{"id": MODEL, "parent": []}, {"id": None, "max_model_len": 8}], None),
        *(([{"id": MODEL, "max_model_len": value}], None) for value in NOT_A_LENGTH),
        *((value, None) for value in (None, "x", 1, {}, [None, 1, "x", []])),
    ],
)
async def test_a_list_of_models_may_hold_anything(tokenizer: HFTokenizer, models: Any, length: int | None) -> None:
    provider = FakeProvider(tokenizer)

    async def get(path: str) -> dict[str, Any]:
        return {"data": models}

    provider.get = get  # type: ignore[method-assign]
    assert await listed_context_length(provider) == length  # type: ignore[arg-type]
