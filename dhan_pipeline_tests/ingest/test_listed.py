from pathlib import Path

from dhan_pipeline.ingest.listed import SubscriptionList
from dhan_pipeline.settings import Settings
from dhan_pipeline.subscriptions import Resolution
from dhan_pipeline.windows import write_resolution
from dhan_pipeline_tests.test_windows import INDEX, listed, make_chain

CHAIN = make_chain()
CENTRE_24_000, CENTRE_24_050 = 0, 1


def followed(own: SubscriptionList, price: float) -> bool:
    """Whether a capture whose underlying has this price moves a window, and takes the list over as it does."""
    assert own.underlyings() == {INDEX.instrument_token}
    own.follow({INDEX.instrument_token: price})
    moved = own.changed()
    if moved:
        own.read()
    return moved


def test_a_price_about_the_midpoint_moves_a_window_once(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_source="dhan", data_dir=tmp_path)
    write_resolution(settings, Resolution(listed(CHAIN, CENTRE_24_000), [], [CHAIN]))
    own = SubscriptionList(settings)
    own.read()
    assert not followed(own, 24_010.0)
    assert [followed(own, price) for price in (24_040.0, 24_020.0, 24_030.0, 24_020.0)] == [True, False, False, False]


def test_a_list_that_somebody_else_wrote_is_looked_at_anew(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_source="dhan", data_dir=tmp_path)
    write_resolution(settings, Resolution(listed(CHAIN, CENTRE_24_000), [], [CHAIN]))
    own = SubscriptionList(settings)
    own.read()
    assert followed(own, 24_040.0)
    write_resolution(settings, Resolution(listed(CHAIN, CENTRE_24_000), [], [CHAIN]))
    assert own.changed()
    assert len(own.read()) == len(listed(CHAIN, CENTRE_24_000))
    assert followed(own, 24_040.0)
    assert len(own.read()) == len(listed(CHAIN, CENTRE_24_050))


def test_while_no_price_is_known_a_window_keeps_its_place(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_source="dhan", data_dir=tmp_path)
    write_resolution(settings, Resolution(listed(CHAIN, CENTRE_24_000), [], [CHAIN]))
    own = SubscriptionList(settings)
    own.read()
    assert followed(own, 24_040.0)
    own.follow({})
    assert not own.changed()
    assert not followed(own, 24_020.0)  # nearer to 24,000, yet not by enough to leave 24,050
