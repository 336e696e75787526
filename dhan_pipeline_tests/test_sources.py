import pytest
from pydantic import ValidationError

from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import CAPTURES, SOURCES, capture_number, source_of_capture


def test_a_capture_s_number_says_whose_it_is() -> None:
    numbers = [capture_number(source, shard) for source in SOURCES for shard in range(CAPTURES)]
    assert numbers == list(range(32))  # those that a block's id has room for
    assert [source_of_capture(number) for number in numbers] == ["dhan"] * 16 + ["kite"] * 16


@pytest.mark.parametrize("shard", [-1, 16])
def test_no_other_shard_has_a_number(shard: int) -> None:
    with pytest.raises(ValueError, match=f"not {shard}"):
        capture_number("kite", shard)


@pytest.mark.parametrize("capture", [-1, 32])
def test_no_other_number_is_a_capture_s(capture: int) -> None:
    with pytest.raises(ValueError, match=f"number {capture}"):
        source_of_capture(capture)


def test_settings_of_two_sources_are_those_of_each() -> None:
    both = Settings(_env_file=None, data_source="kite,dhan", capture=2, metrics_port=9000, dhan_trade_time_offset_s=7)
    assert both.sources == ("kite", "dhan")
    with pytest.raises(ValueError, match="too many values"):
        _ = both.source
    kite, dhan = map(both.of, both.sources)
    assert (dhan.source, dhan.capture_number, dhan.metrics_port, dhan.trade_time_offset_s) == ("dhan", 2, 9000, 7)
    assert (kite.source, kite.capture_number, kite.metrics_port, kite.trade_time_offset_s) == ("kite", 18, 9001, 0)
    assert dhan.subscriptions_path != kite.subscriptions_path
    assert dhan.master_path != kite.master_path
    assert kite.of("kite") == kite


def test_one_source_has_the_metrics_port_that_was_set() -> None:
    assert Settings(_env_file=None, data_source="kite", metrics_port=9000).of("kite").metrics_port == 9000


def test_the_second_source_always_has_a_port_for_its_metrics() -> None:
    with pytest.raises(ValidationError, match="metrics_port"):
        Settings(_env_file=None, data_source="kite,dhan", metrics_port=65_535)
