import numpy as np
import pytest

from dhan_pipeline.feeds.by_source import decoder, instrument_mark
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline_tests.ingest import feed, kite_feed
from dhan_pipeline_tests.ingest.feed import BOTH_SOURCES


@BOTH_SOURCES
def test_each_packet_bears_the_mark_of_its_instrument(source: Source) -> None:
    messages = (feed.market_messages if source == "dhan" else kite_feed.market_messages)(200)
    offsets = np.array([0, *(len(message) for message in messages)]).cumsum()
    decoded = decoder(Settings(_env_file=None, data_source=source))(b"".join(messages), offsets, None)
    seen = 0
    for raw in decoded.ticks:
        for token, start in zip(raw.instrument_token.tolist(), raw.start.tolist(), strict=True):
            offset, mark = instrument_mark(token)
            assert decoded.payload[start + offset :].startswith(mark)
            seen += 1
    assert seen > 100


def test_no_two_instruments_have_the_same_mark() -> None:
    marks = {instrument_mark(token) for token in (*feed.TOKENS, *kite_feed.TOKENS)}
    assert len(marks) == len(feed.TOKENS) + len(kite_feed.TOKENS)


def test_what_is_no_token_has_no_mark() -> None:
    with pytest.raises(ValueError, match="not a Dhan instrument token"):
        instrument_mark(1 << 50)
