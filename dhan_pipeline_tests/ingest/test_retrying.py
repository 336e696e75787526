import psycopg2
import psycopg2.errors
import pytest

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.ingest.retrying import Database, Patience
from dhan_pipeline.settings import Settings


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def patience(told: list[str]) -> Patience:
    return Patience("Nothing works;", told.append)


def test_a_reason_is_told_once_until_it_is_another_one(patience: Patience, told: list[str]) -> None:
    for _ in range(3):
        patience.failed(PipelineError("it is away."))
    patience.failed(PipelineError("it is full."))
    assert told == ["Nothing works; it is away.", "Nothing works; it is full."]
    patience.succeeded()
    patience.failed(PipelineError("it is full."))
    assert told[2:] == ["Nothing works; it is full."]


def test_pauses_grow_to_an_end_and_are_short_again_after_a_success(patience: Patience) -> None:
    pauses = [patience.failed(PipelineError("it is away.")) for _ in range(10)]
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-2] == pauses[-1]
    patience.succeeded()
    assert patience.failed(PipelineError("it is away.")) == pauses[0]


def test_only_the_first_line_of_a_reason_is_told_and_the_name_of_one_that_says_nothing(
    patience: Patience, told: list[str]
) -> None:
    patience.failed(psycopg2.OperationalError("server closed the connection\n\tThis probably means\n"))
    patience.failed(KeyError())
    assert told == ["Nothing works; server closed the connection", "Nothing works; KeyError"]


def test_of_a_connection_that_was_lost_the_loss_is_told_and_not_what_came_of_it(
    patience: Patience, told: list[str]
) -> None:
    error = psycopg2.InterfaceError("connection already closed")
    error.__context__ = psycopg2.OperationalError("terminating connection")
    patience.failed(error)
    assert told == ["Nothing works; terminating connection"]


def test_a_database_without_our_tables_is_told_with_what_to_do(patience: Patience, told: list[str]) -> None:
    patience.failed(psycopg2.errors.UndefinedTable('relation "ingest_ledger" does not exist'))
    assert told == ["Nothing works; The database lacks our tables, or has old ones; run: dhan-pipeline migrate."]


def test_a_mistake_is_logged_with_where_it_was_made_and_what_is_away_is_not(
    patience: Patience, caplog: pytest.LogCaptureFixture
) -> None:
    patience.failed(psycopg2.OperationalError("it is away"))
    assert caplog.records == []
    patience.failed(ZeroDivisionError("a mistake"))
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_database_of_ones_own_that_is_away_is_not_started(settings: Settings) -> None:
    nobody = "postgresql://127.0.0.1:1/nothing"
    with pytest.raises(psycopg2.OperationalError):
        Database(settings, nobody).connect()
