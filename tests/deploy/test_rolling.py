"""Rolling restart under load: only clients in the middle of a stream of the killed replica may notice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.deploy.conftest import free_port
from tests.deploy.rolling import Figures, Fleet, Start, real_replica, roll
from tests.deploy.test_local import CONFIG
from tests.replica import Replica, replica
from tests.tiny import save_tiny
from tests.traffic import Sizes

FAKE, LONG = Sizes(least=20, most=60), Sizes(least=100, most=300, ends=False)


def fake_replica(port: int) -> Iterator[Replica]:
    """Draws 400 tokens a second for all its clients together, so that they are in the middle of something."""
    with replica(port) as running:
        over = threading.Event()

        def feed() -> None:
            with suppress(OSError):  # it has gone
                while not over.wait(0.01):
                    running.allow(4)

        feeding = threading.Thread(target=feed)
        feeding.start()
        try:
            yield running
        finally:
            over.set()
            feeding.join()
            with suppress(OSError):  # what it has not read
                running.run_free()


def rolled(start: Start, nginx: str, folder: Path, names: tuple[str, str], sizes: Sizes, steady: int) -> Figures:
    with Fleet(start, nginx, folder, [free_port() for _ in range(3)]) as fleet:
        return asyncio.run(roll(fleet, *names, clients=8, sizes=sizes, steady=steady))


def check(found: Figures) -> None:
    assert not found.failed, found
    assert found.exit_code == 0
    assert found.retried > 0, "nothing had to be taken to the other replica: this proves nothing"
    assert found.finished > 0
    assert found.cut <= 8, "no more than there are clients"


def test_nobody_notices_but_the_streams_of_the_killed_one(nginx: str, tmp_path: Path) -> None:
    found = rolled(fake_replica, nginx, tmp_path, ("plain", "guided"), FAKE, steady=20)
    check(found)


@pytest.mark.slow
def test_the_same_with_models_in_workers(nginx: str, tmp_path: Path) -> None:
    names = ("large", "tuned", "untuned")
    folders = {name: save_tiny(tmp_path / name, seed=i, context_length=2048) for i, name in enumerate(names)}
    config = tmp_path / "w2s.yaml"
    config.write_text(CONFIG.format(**folders))
    start = real_replica({"W2S_CONFIG": str(config)})
    found = rolled(start, nginx, tmp_path, ("tiny", "tiny-nice"), LONG, steady=25)
    print(found)
    check(found)
