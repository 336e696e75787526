from contextlib import closing
from pathlib import Path

from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.ingest.spots import Spots
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import Decoded
from dhan_pipeline_tests.ingest.feed import EQUITY, FUTURE, START_NS, full, quote, record, ticker

EQUITY_TOKEN, FUTURE_TOKEN = (generate_instrument_token(*instrument) for instrument in (EQUITY, FUTURE))


def test_the_last_price_of_what_is_watched_is_known_as_soon_as_its_block_is_durable(tmp_path: Path) -> None:
    spots = Spots(decoder(Settings(_env_file=None)))
    messages = [ticker(EQUITY, 100.0), quote(FUTURE, 7.0), ticker(EQUITY, 101.5), ticker(EQUITY, 0.0), b"\x07torn"]
    with closing(JournalWriter(tmp_path, 0)) as journal:
        [block] = record(journal, messages, START_NS)
        spots.see(block)
        assert spots.prices == {}
        spots.watch({EQUITY_TOKEN})
        spots.see(block)
        assert spots.prices == {EQUITY_TOKEN: 101.5}
        spots.watch({EQUITY_TOKEN, FUTURE_TOKEN})
        [later] = record(journal, [full(FUTURE, 8.0)], START_NS + 1)
        spots.see(later)
        assert spots.prices == {EQUITY_TOKEN: 101.5, FUTURE_TOKEN: 8.0}
        spots.forget()
        assert spots.prices == {}


def test_a_mistake_in_the_decoder_is_the_writers_to_tell(tmp_path: Path) -> None:
    def mistaken(*_: object) -> Decoded:
        raise ZeroDivisionError

    spots = Spots(mistaken)
    spots.watch({EQUITY_TOKEN})
    with closing(JournalWriter(tmp_path, 0)) as journal:
        [block] = record(journal, [ticker(EQUITY, 100.0)], START_NS)
        spots.see(block)
    assert spots.prices == {}
