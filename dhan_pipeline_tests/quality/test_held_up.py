from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.quality.held_up import Waits, held_up, held_up_then
from dhan_pipeline.quality.hours import measure_hour
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.ledger import write_status


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        ({}, "the database does not keep up"),
        ({"queue_depth": None, "workers": 0}, "RabbitMQ is away"),
        ({"queue_depth": 9, "workers": 0}, "no worker runs"),
        ({"queue_depth": 9, "workers": None}, "the database does not keep up or was away"),
        ({"queue_depth": 9, "workers": 2}, "the workers or the database do not keep up"),
    ],
)
def test_a_status_line_tells_who_holds_up_what_waits(facts: dict[str, Any], cause: str) -> None:
    assert held_up(facts).startswith(cause)


def test_the_seconds_of_an_hour_are_those_in_which_something_waited_that_was_received_in_it() -> None:
    waits = Waits()
    at = "2026-11-20T10:00:10+05:30"
    for facts in (
        {"backlog_seconds": 5.0},
        {"backlog_seconds": 0.0},
        {"backlog_seconds": 20.0, "queue_depth": None},
        {"backlog_seconds": 21.0, "queue_depth": None},
        {"backlog_seconds": 22.0, "queue_depth": 3, "workers": 0},
        {"backlog_seconds": 6.0, "queue_depth": 3, "workers": 3},
    ):
        waits.see({"at": at, **facts})
    assert waits.by_hour == {"2026-11-20T09:00": {"rabbitmq": 2, "workers": 1}, "2026-11-20T10:00": {"busy": 1}}
    for hour in range(11, 24):
        waits.see({"at": f"2026-11-20T{hour}:30:00+05:30", "backlog_seconds": 60.0})
    assert list(waits.by_hour) == [f"2026-11-20T{hour}:00" for hour in range(20, 24)]


def test_an_hour_is_laid_to_what_held_it_up_longest_and_the_rest_is_told() -> None:
    assert held_up_then({"workers": 40, "rabbitmq": 310}, True) == (
        "RabbitMQ was away: see that it stays up, and that RABBITMQ_URL is right; for 40 s no worker ran"
    )
    assert held_up_then({"database": 3}, False).startswith("the database did not keep up or was away: look at")


def test_where_nothing_was_noted_only_the_database_stands_between_a_capture_and_its_rows() -> None:
    assert held_up_then({}, False).startswith("the database did not keep up or was away")
    assert held_up_then({}, True).startswith("RabbitMQ, the workers or the database were away")
    assert held_up_then({"of a later version": 9}, True).startswith("RabbitMQ, the workers")


def test_a_sealed_hour_knows_what_all_captures_noted_of_it(conn: connection, database_url: str, tmp_path: Path) -> None:
    hour, other = "2026-11-20T09:00", "2026-11-20T10:00"
    write_status(conn, 0, "dhan", {"waits": {hour: {"rabbitmq": 9, "busy": 2}, other: {"busy": 99}}})
    write_status(conn, 16, "kite", {"waits": {hour: {"rabbitmq": 3}}})
    write_status(conn, 1, "dhan", {})
    settings = Settings(_env_file=None, data_dir=tmp_path, database_url=database_url)
    assert measure_hour(settings, hour, Clock()).waits == {"rabbitmq": 12, "busy": 2}
