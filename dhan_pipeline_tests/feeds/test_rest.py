"""The pace and the patience of requests; the brokers' histories show the rest."""

import asyncio

import numpy as np
import pytest

from dhan_pipeline.feeds.dhan.rest import LIMITS as DHAN
from dhan_pipeline.feeds.kite.rest import LIMITS as KITE
from dhan_pipeline.feeds.rest import Pacer, RestPolicy
from dhan_pipeline_tests.feeds.simulator.trading import SetClock


async def test_turns_come_in_order_and_never_closer_than_the_interval() -> None:
    loop = asyncio.get_running_loop()
    pacer = Pacer(0.02, SetClock())
    turns: list[tuple[int, float]] = []

    async def take(number: int) -> None:
        await pacer.turn()
        turns.append((number, loop.time()))
        if number == 1:
            pacer.rest(0.1)

    await asyncio.gather(*map(take, range(4)))
    assert [number for number, _ in turns] == [0, 1, 2, 3]
    waits = np.diff([at for _, at in turns])
    assert (waits > [0.019, 0.099, 0.019]).all()
    assert pacer.today == 4


async def test_a_task_that_is_cancelled_in_the_queue_holds_nobody_up() -> None:
    pacer = Pacer(0.05, SetClock())
    await pacer.turn()
    waiting = [asyncio.ensure_future(pacer.turn()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[1].cancel()
    await waiting[2]
    assert waiting[0].cancelled()


@pytest.mark.parametrize("policy", [DHAN, KITE])
def test_a_broker_that_is_busy_gets_the_minute_of_rest_that_it_may_want(policy: RestPolicy) -> None:
    longest = [policy.pause_s(failures) for failures in range(1, policy.busy_tries)]
    assert sum(longest) > 60
    assert max(longest) <= policy.longest_pause_s
