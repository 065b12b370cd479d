"""Four times the load that fits: accepted requests are answered, the others are refused at once."""

from __future__ import annotations

import asyncio

import httpx

from server.settings.config import ServerConfig
from tests.fakes import FakeLargeModel, fake_engine, letters
from tests.server.conftest import Connect
from w2s_core.config import Limits

BODY = {"model": "guided", "prompt": "x", "max_tokens": 6, "guidance": {"beam_width": 2, "successors": 2}}
RUN, WAIT = 2, 1  # requests of four rows each


async def test_who_is_let_in_is_answered_and_the_others_hear_so_at_once(connect: Connect) -> None:
    gate = asyncio.Event()
    large = FakeLargeModel(letters(eos=0), gate=gate.wait)
    engine = fake_engine(large, limits=Limits(max_rows=4 * RUN, max_queued_rows=4 * WAIT))
    client = await connect(engine, ServerConfig())

    async def ask(seed: int) -> httpx.Response:
        return await client.post("/v1/completions", json=BODY | {"seed": seed, "stream": seed % 2 == 0})

    asking = [asyncio.create_task(ask(seed)) for seed in range(4 * (RUN + WAIT))]
    refused: set[asyncio.Task[httpx.Response]] = set()
    while len(refused) < 3 * (RUN + WAIT):  # nothing was drawn so far: they did not wait for anybody
        done, _ = await asyncio.wait(set(asking) - refused, return_when=asyncio.FIRST_COMPLETED)
        refused |= done
    for task in refused:
        response = task.result()
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert (engine.admission.rows_running, engine.admission.rows_waiting) == (4 * RUN, 4 * WAIT)

    gate.set()
    accepted = await asyncio.gather(*(task for task in asking if task not in refused))
    assert [response.status_code for response in accepted] == [200] * (RUN + WAIT)
    assert (engine.admission.rows_running, engine.admission.rows_waiting) == (0, 0)
    assert (await ask(0)).status_code == 200, "there is room again"
