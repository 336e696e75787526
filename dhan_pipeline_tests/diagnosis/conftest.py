"""A site on which all is well: a database with instruments, rules, a broker that answers, a token that lasts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.rest import RestServer
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.instruments import read_instruments
from dhan_pipeline.subscriptions import load_rules, resolve, write_subscriptions
from dhan_pipeline_tests.broker import insert_instruments, serving

RULES = "rules:\n  - indices: [S13]\n  - symbols: [S2885, S11536]\n"


@dataclass(frozen=True)
class Site:
    settings: Settings
    rest: RestServer
    clock: Clock
    conn: connection

    def change(self, **settings: object) -> "Site":
        """The same with other settings."""
        return Site(self.settings.model_copy(update=settings), self.rest, self.clock, self.conn)


def at(time: str) -> Clock:
    """A clock that stands still, nearly, at a time in IST."""
    return Clock(start_ns=int(datetime.fromisoformat(time).replace(tzinfo=IST).timestamp()) * 10**9, speed=1e-9)


def write_rules(settings: Settings, conn: connection, rules: str = RULES) -> None:
    settings.subscriptions_file.write_text(rules)
    with conn:
        active = read_instruments(conn, settings.source)
    resolution = resolve(load_rules(settings.subscriptions_file), active, date(2026, 11, 20), settings.source)
    write_subscriptions(settings.subscriptions_path, resolution.subscriptions)


@contextmanager
def well(
    tmp_path: Path, database_url: str, conn: connection, clock: Clock, server: Clock | None = None
) -> Iterator[Site]:
    """All is well as of the clock; `server` is the broker's clock, where that is another."""
    insert_instruments(conn)
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        database_url=database_url,
        subscriptions_file=tmp_path / "subscriptions.yaml",
        sessions="always",
    )
    write_rules(settings, conn)
    settings.master_path.touch()
    os.utime(settings.master_path, ns=(clock.now_ns(), clock.now_ns()))
    with serving(settings, server or clock, None, tmp_path) as (rest, served):
        yield Site(served.model_copy(update={"dhan_feed_url": f"ws://127.0.0.1:{rest.port}"}), rest, clock, conn)


@pytest.fixture
def site(tmp_path: Path, database_url: str, conn: connection) -> Iterator[Site]:
    with well(tmp_path, database_url, conn, Clock()) as site:
        yield site
