"""A data directory and a database that knows a few instruments."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline_tests.ingest import kite_feed
from dhan_pipeline_tests.ingest.feed import TOKENS, add_instruments, market_messages


@pytest.fixture
def messages(source: Source) -> Callable[..., list[bytes]]:
    """Makes up so many messages of the source, others with another seed."""
    return market_messages if source == "dhan" else kite_feed.market_messages


@pytest.fixture
def tokens(source: Source) -> list[int]:
    """The instruments in them that are known."""
    return TOKENS if source == "dhan" else kite_feed.TOKENS


@pytest.fixture
def settings(tmp_path: Path, database_url: str, source: Source, tokens: list[int]) -> Settings:
    add_instruments(database_url, tokens)
    return Settings(
        _env_file=None,
        data_source=source,
        data_dir=tmp_path / "data",
        database_url=database_url,
        dhan_token_file=tmp_path / "token.json",
        kite_token_file=tmp_path / "token.json",
        sessions="always",
    )


@pytest.fixture
def journal(settings: Settings) -> Iterator[JournalWriter]:
    with closing(JournalWriter(settings.journal_dir, settings.capture_number)) as writer:
        yield writer
