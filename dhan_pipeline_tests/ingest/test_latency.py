import numpy as np
import pytest

from dhan_pipeline.ingest.latency import LatencyHistogram
from dhan_pipeline.store.flow import LATENCY_LIMITS_MS


@pytest.mark.parametrize("median_ms", [0.3, 5.0, 80.0, 20_000.0])
@pytest.mark.parametrize("percent", [1, 50, 99, 99.9])
def test_percentiles_are_within_four_percent(median_ms: float, percent: float) -> None:
    latencies = np.random.default_rng(0).lognormal(np.log(median_ms), 0.3, 200_000)
    histogram = LatencyHistogram()
    for part in np.split(latencies, 100):
        histogram.add(part)
    exact = float(np.percentile(latencies, percent))
    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.045, abs=0.006)


def test_a_percentile_is_not_below_the_latencies_that_it_covers() -> None:
    histogram = LatencyHistogram()
    histogram.add(np.array([10.0]))
    assert 10.0 <= (histogram.percentile(50) or 0) <= 10.5


def test_nothing_counted_has_no_percentile() -> None:
    assert LatencyHistogram().percentile(99) is None
    histogram = LatencyHistogram()
    histogram.add(np.array([]))
    assert histogram.percentile(99) is None


def test_latencies_out_of_range_are_counted_at_the_ends() -> None:
    histogram = LatencyHistogram()
    histogram.add(np.array([-5.0, 0.0, 1e12]))
    assert histogram.counts.sum() == 3
    assert histogram.percentile(50) == pytest.approx(0.1, rel=0.05)
    assert histogram.percentile(99) == pytest.approx(1e7, rel=0.05)


def test_columns_end_at_the_limits_and_hold_all_that_was_counted() -> None:
    histogram = LatencyHistogram()
    histogram.add(np.array([0.2, 0.9, 1.1, 4.8, 5.2, 990.0, 1010.0, 99_000.0, 120_000.0]))
    columns = histogram.columns()
    assert len(columns) == len(LATENCY_LIMITS_MS) + 1
    named = dict(zip([*LATENCY_LIMITS_MS, "beyond"], columns, strict=True))
    assert {limit: count for limit, count in named.items() if count} == {
        1: 2,
        2: 1,
        5: 1,
        10: 1,
        1000: 1,
        2000: 1,
        100_000: 1,
        "beyond": 1,
    }
