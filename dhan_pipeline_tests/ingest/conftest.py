"""A data directory and a database that knows a few instruments."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.ingest.feed import TOKENS, add_instruments


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    add_instruments(database_url, TOKENS)
    return Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        database_url=database_url,
        dhan_token_file=tmp_path / "token.json",
        sessions="always",
    )


@pytest.fixture
def journal(settings: Settings) -> Iterator[JournalWriter]:
    with closing(JournalWriter(settings.journal_dir, settings.capture)) as writer:
        yield writer
