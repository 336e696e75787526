import asyncio
import threading
from contextlib import suppress

import pytest

from dhan_pipeline.threads import in_thread


def test_what_the_call_returns_or_raises_comes_back() -> None:
    assert in_thread(lambda: 5).result(5) == 5
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: 1 / 0).result(5)


async def test_who_no_longer_waits_leaves_it_to_its_end() -> None:
    go, names = threading.Event(), list[str]()

    def work() -> None:
        go.wait(5)
        names.append(threading.current_thread().name)

    future = in_thread(work, "slow")
    waiting = asyncio.wrap_future(future)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    go.set()
    future.result(5)
    assert names == ["slow"]
