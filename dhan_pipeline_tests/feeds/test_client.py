import pytest

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.client import shard
from dhan_pipeline.feeds.errors import SubscriptionLimitError
from dhan_pipeline.ticks import Mode


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (0, []),
        (1, [1]),
        (5000, [5000]),
        (5001, [2500, 2501]),
        (14_999, [4999, 5000, 5000]),
        (25_000, [5000] * 5),
    ],
)
def test_instruments_are_spread_evenly_and_in_order_over_as_few_connections_as_can_hold_them(
    count: int, sizes: list[int]
) -> None:
    subscriptions = dict.fromkeys(range(count), Mode.TICKER)
    shards = shard(subscriptions, 5000, 5, "Dhan")
    assert [len(part) for part in shards] == sizes
    assert [item for part in shards for item in part.items()] == [*subscriptions.items()]


def test_more_than_an_account_may_have_is_one_clear_sentence() -> None:
    with pytest.raises(SubscriptionLimitError) as caught:
        shard(dict.fromkeys(range(25_001), Mode.TICKER), 5000, 5, "Dhan")
    assert str(caught.value) == "25001 instruments are too many: Dhan allows 5 connections of 5000 instruments."
    assert isinstance(caught.value, PipelineError)
