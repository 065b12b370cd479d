"""What a worker process is sent: commands that wait together are one message."""

from __future__ import annotations

from queue import SimpleQueue

from w2s_core.pool.process import take_all


def test_all_that_waits_is_taken_in_order() -> None:
    queue: SimpleQueue[int] = SimpleQueue()
    for number in range(5):
        queue.put(number)
    assert take_all(queue) == [0, 1, 2, 3, 4]
    queue.put(5)
    assert take_all(queue) == [5]
