"""`replay`, over a journal and a database: what it says, and what it leaves."""

import json
from contextlib import closing
from pathlib import Path

import pytest
import typer
from psycopg2.extensions import connection

from dhan_pipeline.cli import app as program
from dhan_pipeline.cli.replay import replay
from dhan_pipeline.journal.reader import hour_path
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline_tests.ingest.feed import EQUITY, HOUR, NEXT_HOUR, START_NS, TOKENS, add_instruments, quote, record
from dhan_pipeline_tests.program import Done, Here, last_sentence, sentence, wrong_usage

ROWS = 12
FIRST_TOKEN = 1103806597957


@pytest.fixture
def run(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> "Run":
    """The program with `replay` in it, over two hours of a journal, in UTC's past."""
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(replay)
    app.command("another")(lambda: None)  # with one command alone there would be no name to give
    monkeypatch.setattr(program, "app", app)
    add_instruments(database_url, TOKENS)
    with closing(JournalWriter(tmp_path / "data" / "journal", 0)) as journal:
        for hour in range(2):
            record(journal, [quote(EQUITY, 100.0 + n) for n in range(ROWS)], START_NS + hour * HOUR_NS)
    return Run(Here(tmp_path, monkeypatch, capsys), database_url, tmp_path / "data")


class Run:
    def __init__(self, here: Here, database_url: str, data_dir: Path) -> None:
        self._here, self._url, self.data_dir = here, database_url, data_dir

    def __call__(self, *arguments: str) -> Done:
        return self._here("replay", *arguments, database_url=self._url, data_dir=self.data_dir)


def execute(conn: connection, statement: str) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute(statement)


def lines(done: Done) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_hours_are_made_compared_and_made_again(run: Run, conn: connection) -> None:
    assert lines(run("--hour", HOUR)) == [f"{HOUR} 12 rows, different: 12 added, 0 removed, 0 changed"]
    both = ("--hour", HOUR, "--to", NEXT_HOUR)
    assert lines(run(*both)) == [
        f"{HOUR} 12 rows, the same",
        f"{NEXT_HOUR} 12 rows, different: 12 added, 0 removed, 0 changed",
    ]
    execute(conn, "UPDATE tick_rows SET oi = 3, last_price = 101 WHERE tick_id % 65536 = 0")
    of_day = lines(run("--hour", "2026-11-20"))
    assert of_day == [
        f"{HOUR} 12 rows, different: 0 added, 0 removed, 2 changed (last_price 2, oi 2)",
        f"{NEXT_HOUR} 12 rows, different: 0 added, 0 removed, 2 changed (last_price 2, oi 2)",
    ]
    assert lines(run(*both)) == [f"{hour} 12 rows, the same" for hour in (HOUR, NEXT_HOUR)]


def test_diff_shows_every_row_that_differs_and_changes_nothing(run: Run, conn: connection) -> None:
    run("--hour", HOUR)
    execute(conn, "UPDATE tick_rows SET oi = 3, last_trade_time = NULL; DELETE FROM tick_rows WHERE last_price = 104")
    for _ in range(2):
        done = run("--hour", HOUR, "--diff")
        shown = lines(done)
        assert len(shown) == ROWS + 1
        assert shown[0].startswith("2026-11-20 09:00:00.000000 ")
        assert shown[0].endswith(f" {FIRST_TOKEN} last_trade_time NULL -> 2026-11-20 09:00:00.000000, oi 3 -> NULL")
        assert shown[-2].endswith(f" {FIRST_TOKEN} row absent -> present")
        assert shown[-1] == (f"{HOUR} 12 rows, different: 1 added, 0 removed, 11 changed (last_trade_time 11, oi 11)")
        assert done.stderr.endswith("Nothing was changed.\n")


def test_json_is_a_line_a_row_and_a_line_an_hour(run: Run, conn: connection) -> None:
    run("--hour", HOUR)
    execute(conn, "UPDATE tick_rows SET last_trade_time = NULL WHERE last_price = 100")
    execute(conn, "UPDATE tick_rows SET tick_id = 5 WHERE last_price = 101")
    changed, removed, added, summary = map(json.loads, lines(run("--hour", HOUR, "--diff", "--json")))
    trade_time = "2026-11-20T03:30:00+00:00"
    assert (changed["what"], changed["columns"]) == ("changed", {"last_trade_time": [None, trade_time]})
    assert (changed["instrument_token"], changed["time"]) == (FIRST_TOKEN, trade_time)
    assert (removed["what"], removed["tick_id"], removed["columns"]) == ("removed", 5, {})
    assert (added["what"], added["tick_id"]) == ("added", changed["tick_id"] + 1)
    assert {name: summary[name] for name in ("hour", "rows", "same", "added", "removed", "changed", "columns")} == {
        "hour": HOUR,
        "rows": ROWS,
        "same": False,
        "added": 1,
        "removed": 1,
        "changed": 1,
        "columns": {"last_trade_time": 1},
    }
    (mended,) = map(json.loads, lines(run("--hour", HOUR, "--json")))
    assert mended == summary
    (again,) = map(json.loads, lines(run("--hour", HOUR, "--json")))
    assert (again["same"], again["digest"]) == (True, mended["digest"])


def test_hours_of_which_the_journal_holds_nothing_are_said(run: Run) -> None:
    done = run("--hour", "2026-11-20T07:00", "--to", "2026-11-20T11:00")
    assert len(lines(done)) == 2
    assert "The journal holds nothing of 2026-11-20T07:00 to 2026-11-20T08:00, 2026-11-20T11:00." in done.stderr
    centuries = run("--hour", "1950-01-01", "--to", "2026-11-20T09:00")
    assert "The journal holds nothing of 1950-01-01T00:00 to 2026-11-20T08:00." in centuries.stderr
    assert sentence(run("--hour", "2026-11-19T09:00")) == "The journal holds nothing of the hour 2026-11-19T09:00."
    assert sentence(run("--hour", "2026-11-19")) == (
        "The journal holds nothing of the hours from 2026-11-19T00:00 to 2026-11-19T23:00."
    )


def test_an_hour_that_is_still_open_is_refused(run: Run) -> None:
    assert "The hour 2999-01-01T09:00 is still open" in sentence(run("--hour", "2999-01-01T09:00"))


def test_an_hour_that_the_journal_lost_in_part_fails_and_the_others_are_done(run: Run) -> None:
    assert run("--hour", HOUR, "--to", NEXT_HOUR).returncode == 0
    path = hour_path(run.data_dir / "journal", 0, HOUR)
    damaged = bytearray(path.read_bytes())
    damaged[-20] ^= 255
    path.write_bytes(damaged)
    done = run("--hour", HOUR, "--to", NEXT_HOUR)
    assert last_sentence(done) == (
        f"The journal lacks 1 blocks of {HOUR} whose ticks the database holds; nothing was changed."
    )
    assert done.stdout.startswith(NEXT_HOUR)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--hour", "nine"), "nine is neither an hour"),
        (("--hour", "2026-11-20T09:30"), "neither an hour"),
        (("--hour", "0001-01-01"), "neither an hour"),
        (("--hour", HOUR, "--to", "2026-11-20T08:00"), "2026-11-20T08:00 is before"),
        (("--to", HOUR), "Missing option"),
    ],
)
def test_what_is_no_hour_is_wrong_usage(run: Run, arguments: tuple[str, ...], said: str) -> None:
    assert said in " ".join(wrong_usage(run(*arguments)).replace("│", " ").split())
