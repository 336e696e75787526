import numpy as np
import pytest
from numpy.typing import NDArray

from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.transport.lanes import FIRST_LANE, LANES, lane_of


def test_the_lane_of_an_instrument_never_changes() -> None:
    # Messages that wait in the broker, and parts that the ledger has, say a lane: another hash would mix them up.
    instruments = [("IDX_I", 13), ("NSE_EQ", 2885), ("NSE_EQ", 11536), ("NSE_FNO", 40_000), ("NSE_FNO", 40_001)]
    tokens = np.array([generate_instrument_token(segment, security_id) for segment, security_id in instruments])
    assert lane_of(tokens).tolist() == [3, 2, 2, 3, 3]


def test_kite_tokens_and_no_tokens_have_lanes_too() -> None:
    assert lane_of(np.array([738_561, 256_265, 0])).tolist() == [1, 3, 1]
    assert lane_of(np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize(
    "ids",
    [
        np.arange(40_000, 46_000),
        np.arange(40_000, 52_000, 2),
        np.random.default_rng(0).choice(60_000, 3000, replace=False),
    ],
    ids=["consecutive", "every second", "any"],
)
@pytest.mark.parametrize("segment", ["NSE_EQ", "NSE_FNO", "MCX_COMM"])
def test_instruments_are_spread_over_all_lanes(segment: str, ids: NDArray[np.int64]) -> None:
    first = generate_instrument_token(ExchangeSegment[segment], 1) - 1
    counts = np.bincount(lane_of(first + ids), minlength=FIRST_LANE + LANES)[FIRST_LANE:]
    assert len(counts) == LANES
    assert np.abs(counts / len(ids) - 1 / LANES).max() < 0.03
