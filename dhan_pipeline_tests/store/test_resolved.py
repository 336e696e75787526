from datetime import date
from pathlib import Path

from psycopg2.extensions import connection

from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.sessions import DAY_NS, parse_hour_key
from dhan_pipeline.store.instruments import sync_to_database
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.store.resolved import resolve_rules
from dhan_pipeline.subscriptions import load_rules
from dhan_pipeline_tests.ingest.feed import START_NS, HandClock

NIFTY = generate_instrument_token("IDX_I", 13)


def test_options_are_chosen_around_the_last_price_that_was_captured(
    conn: connection, database_url: str, tmp_path: Path
) -> None:
    write_synthetic_master(tmp_path / "master.csv", 2_000, on=date(2026, 11, 20))
    sync_to_database(database_url, parse_dhan_csv(tmp_path / "master.csv"))
    rules = tmp_path / "subscriptions.yaml"
    rules.write_text("rules:\n - options: NIFTY\n   expiries: 1\n   around_spot: 1\n")

    def spot(clock: HandClock) -> float | None:
        [found] = resolve_rules(conn, load_rules(rules), "dhan", clock).summary[0].spots
        conn.rollback()
        assert found.instrument_token == NIFTY
        return found.price

    assert spot(HandClock()) is None
    hour_ns = parse_hour_key("2026-11-20T09:00")
    ensure_partitions(conn, hour_ns, hour_ns + 1)
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tick_rows (tick_id, time, instrument_token, last_price, mode, tradable) VALUES"
            " (1, '2026-11-20 09:00:01+05:30', %(token)s, 23950.05, 'quote', false),"
            " (2, '2026-11-20 09:00:02+05:30', %(token)s, 23990.5, 'quote', false)",
            {"token": NIFTY},
        )
    assert spot(HandClock()) == 23990.5
    assert spot(HandClock(START_NS + 2 * DAY_NS)) == 23990.5
    assert spot(HandClock(START_NS + 12 * DAY_NS)) is None
