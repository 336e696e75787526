import pytest
from psycopg2 import InterfaceError, OperationalError

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.ingest.outage import RETRY_S, Outage, reason_of


def test_the_pauses_grow_to_the_longest_and_begin_anew_when_all_was_well() -> None:
    outage = Outage(lambda sentence: None, "")
    assert [outage.again_in_s(PipelineError("away")) for _ in range(7)] == [*RETRY_S, 5.0, 5.0]
    outage.over()
    assert outage.again_in_s(PipelineError("away")) == RETRY_S[0]


def test_each_reason_is_told_once() -> None:
    told: list[str] = []
    outage = Outage(told.append, "Nothing goes.")
    for reason in ("Away.", "Away.", "Full.", "Full.", "Away."):
        outage.again_in_s(PipelineError(reason))
    outage.over()
    outage.again_in_s(PipelineError("Away."))
    assert told == ["Nothing goes. Away.", "Nothing goes. Full.", "Nothing goes. Away.", "Nothing goes. Away."]


def test_what_nobody_foresaw_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(lambda sentence: None, "")
    try:
        {}["x"]  # type: ignore[index]
    except KeyError as error:
        outage.again_in_s(error)
    assert "Traceback" in caplog.text


def test_the_reason_is_the_first_line_and_the_loss_of_a_connection_rather_than_its_rollback() -> None:
    assert reason_of(PipelineError("")) == "PipelineError"
    assert reason_of(PipelineError("one\ntwo")) == "one"
    try:
        try:
            raise OperationalError("server closed the connection unexpectedly\n\tThis probably means")
        except OperationalError:
            raise InterfaceError("connection already closed")  # noqa: B904
    except InterfaceError as error:
        assert reason_of(error) == "server closed the connection unexpectedly"
