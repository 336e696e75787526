from io import StringIO

import pytest
from rich.console import Console

from dhan_pipeline.local.terminal import LiveLine

STATUS = {
    "messages_per_second": 1998.0,
    "ticks": 48213,
    "rejected": 0,
    "latency_p50_ms": 17.2,
    "latency_p99_ms": 30.4,
    "backlog_seconds": 0.0,
}


@pytest.mark.parametrize(
    ("statuses", "line"),
    [
        (
            [STATUS],
            "    1,998 messages/s       48,213 ticks stored     0 rejected  p50   17 ms  p99   30 ms  backlog 0.0 s",
        ),
        (
            [STATUS, STATUS | {"latency_p50_ms": None, "latency_p99_ms": None, "backlog_seconds": None}],
            "    3,996 messages/s       96,426 ticks stored     0 rejected  p50   17 ms  p99   30 ms  backlog 0.0 s",
        ),
        (
            [STATUS | {"latency_p50_ms": None, "latency_p99_ms": None, "ticks": 0}],
            "    1,998 messages/s            0 ticks stored     0 rejected  p50       -  p99       -  backlog 0.0 s",
        ),
    ],
    ids=["one", "of two the one that has stored", "none has stored yet"],
)
def test_the_line_says_what_all_captures_come_to_and_nothing_that_is_not_known(
    statuses: list[dict[str, object]], line: str
) -> None:
    written = StringIO()
    LiveLine(Console(file=written, width=200)).show(statuses)
    assert written.getvalue().rstrip() == line
