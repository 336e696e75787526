"""What a person can do wrong: each is answered by one sentence and an exit code, never by a traceback."""

import errno
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
from psycopg2 import errors
from psycopg2.extensions import connection

from dhan_pipeline import cli
from dhan_pipeline.cli import app
from dhan_pipeline.errors import explain
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, PIN, TOTP_SECRET, make_token
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.store import embedded
from dhan_pipeline.store.engine import connect, create_database
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.program import Here, command, environment, last_sentence, run, running, sentence, wrong_usage

AWAY = "postgresql://user:hunter2@127.0.0.1:1/ticks"
NO_ADDRESS = (
    "DATABASE_URL is no address of the form postgresql://user:password@host:port/database;"
    " special characters in user and password have to be percent-encoded, @ as %40."
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the program runs, with a file of each kind that can be in the way."""
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "text").write_text("a,b\n1,2\n")
    (tmp_path / "list.json").write_text("[1]")
    return tmp_path


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(folder, monkeypatch, capsys)


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gaps", "--hour", "2026-11-20"), "2026-11-20 is not an hour such as 2026-11-20T09:00"),
        (("gaps", "--hour", "2026-11-20T09:30"), "2026-11-20T09:30 is not an hour such as 2026-11-20T09:00"),
        (("gaps", "--day", "yesterday"), "yesterday is not a day such as 2026-11-20"),
        (("gaps", "--since", "noon"), "noon is not a time such as 2026-11-20T09:15"),
        (("gaps", "--since", "0001-01-01"), "0001-01-01 is not a time such as 2026-11-20T09:15"),
        (("gaps", "--day", "0001-01-01"), "that is before 1970"),
        (("gaps", "--day", "9999-12-30"), "that is still to come"),
        (("gaps", "--day", "2026-11-20", "--since", "2026-11-20"), "only one of --hour, --day and --since"),
        (("simulate", "--fault", "teleport"), "teleport is not a fault: it is NAME[=VALUE][@AT][+FOR][/EVERY]"),
        (("simulate", "--fault", "reset+3"), "reset passes at once"),
        (("simulate", "--fault", "refuse=7"), "7 is not an HTTP status"),
        (("simulate", "--listen", "127.0.0.1:²"), "127.0.0.1:² is not HOST:PORT"),
        (
            ("simulate", "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"),
            "it is given once for each source at most",
        ),
        (
            ("simulate", "--source", "kite", "--fault", "disconnect"),
            "disconnect is nothing that kite can do, only dhan",
        ),
        (("simulate", "--source", "dhan,kite,dhan"), "dhan,kite,dhan names a source twice"),
        (("simulate", "--source", "dhan,kite", "--from-journal", "."), "of one broker at a time"),
        (("simulate", "--seed", "-1"), "Invalid value for '--seed'"),
        (("simulate", "--rate", "nan"), "Invalid value for '--rate'"),
        (("simulate", "--rate", "inf"), "Invalid value for '--rate'"),
        (("demo", "--rate", "inf"), "Invalid value for '--rate'"),
        (("demo", "--for", "inf"), "Invalid value for '--for'"),
        (("ingest", "--for", "1e300"), "Invalid value for '--for'"),
        (("simulate", "--instruments", "-5"), "-5 is neither a number nor a file"),
        (("demo", "--port", "70000"), "Invalid value for '--port'"),
        (("ingest", "--for", "nan"), "Invalid value for '--for'"),
        (("sync-instruments", "--csv-path", "text", "--batch-size", "0"), "Invalid value for '--batch-size'"),
        (("token", "steal"), "No such command 'steal'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_said_and_exits_2(arguments: tuple[str, ...], said: str, here: Here) -> None:
    assert said in " ".join(wrong_usage(here(*arguments)).split())


# Settings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data_source", "nobody"),
        ("dhan_trade_time_offset_s", "half an hour"),
        ("dhan_trade_time_offset_s", "1" + 30 * "0"),
        ("dhan_trade_time_offset_s", "-86401"),
        ("feed_silence_s", "0"),
        ("feed_silence_s", "nan"),
        ("feed_silence_s", "inf"),
        ("capture", "-1"),
        ("capture", "32"),
        ("capture", "0.5"),
        ("flush_interval_ms", "0"),
        ("flush_interval_ms", "1001"),
        ("sessions", "sometimes"),
        ("partitions_start", "2026-02-30"),
        ("retention_days", "0"),
        ("retention_days", "a week"),
        ("retention_days", "100000000"),
        ("parser_error_rate_warn", "little"),
        ("parser_error_rate_error", ""),
        ("latency_p99_ms_warn", "1s"),
        ("latency_p99_ms_error", "high"),
        ("gap_s_warn", "five"),
        ("gap_s_error", "one minute"),
        ("parser_error_rate_warn", "nan"),
        ("parser_error_rate_error", "5"),
        ("latency_p99_ms_warn", "-1"),
        ("latency_p99_ms_error", "inf"),
        ("gap_s_warn", "nan"),
        ("gap_s_error", "-1"),
    ],
)
def test_a_wrong_setting_is_named_and_not_shown(setting: str, value: str, here: Here) -> None:
    said = sentence(here("db", "url", **{setting: value}))
    assert said.startswith(f"The settings cannot be used: {setting.upper()}: Input should be")
    assert not value or f"'{value}'" not in said


def test_every_wrong_setting_is_named(here: Here) -> None:
    said = sentence(here("migrate", capture="x", retention_days="y"))
    assert re.findall(r"([A-Z_]+): Input", said) == ["CAPTURE", "RETENTION_DAYS"]


def test_an_env_file_that_is_no_text_is_said(here: Here, folder: Path) -> None:
    (folder / ".env").write_bytes(b"\xff\xfe")
    assert sentence(here("migrate")) == "The file .env is not a text file."


# The database


@pytest.mark.parametrize("name", ["migrate", "gaps", "redrive"])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        (AWAY, r"The database cannot be .*: .*Connection refused\. Is DATABASE_URL right, and does the server run\?"),
        ("postgresql://user:hunter2@nowhere.invalid/ticks", r".*could not translate host name .*"),
        ("postgresql://user:hunter2@127.0.0.1:port/ticks", re.escape(NO_ADDRESS)),
        ("postgresql://user:pa@hunter2#word@127.0.0.1/ticks", re.escape(NO_ADDRESS)),
        ("postgresql://user:hunter2/cret@127.0.0.1/ticks", re.escape(NO_ADDRESS)),
        ("postgresql://user:hunter2/ticks", re.escape(NO_ADDRESS)),
        ("postgresql://user:hunter2@[::1/ticks", ".*" + re.escape(NO_ADDRESS)),
        ("mysql://user:hunter2@127.0.0.1/ticks", re.escape(NO_ADDRESS)),
        ("ticks", re.escape(NO_ADDRESS)),
    ],
    ids=["away", "host", "port", "at", "slash", "no host", "brackets", "scheme", "word"],
)
def test_a_wrong_database_address_is_said(name: str, url: str, said: str, here: Here) -> None:
    done = here(name, database_url=url)
    assert re.fullmatch(said, sentence(done))
    assert "hunter2" not in done.stderr


def test_a_capture_is_not_started_over_what_is_no_database(here: Here, folder: Path) -> None:
    subscribe(folder)
    assert sentence(here("ingest", database_url="mysql://user:hunter2@127.0.0.1/ticks")) == NO_ADDRESS


def test_psql_is_not_given_an_address_that_is_none(here: Here) -> None:
    said = sentence(here("db", "psql", database_url="postgresql://user:hunter2@[::1/ticks"))
    assert said == NO_ADDRESS


@pytest.mark.parametrize("command_", ["migrate", "gaps", "redrive"])
def test_a_wrong_password_and_a_missing_database_are_said(command_: str, postgres_url: str, here: Here) -> None:
    password = urlsplit(postgres_url).password or ""
    said = sentence(here(command_, database_url=postgres_url.replace(password, "hunter2")))
    assert "password authentication failed" in said
    assert "hunter2" not in said
    missing = urlsplit(postgres_url)._replace(path="/nothing").geturl()
    assert 'database "nothing" does not exist' in sentence(here(command_, database_url=missing))


@pytest.mark.parametrize("arguments", [("gaps",), ("redrive",)], ids=" ".join)
def test_a_database_without_tables_is_said(arguments: tuple[str, ...], postgres_url: str, here: Here) -> None:
    url = create_database(postgres_url, "no_tables_at_all")
    said = sentence(here(*arguments, database_url=url))
    assert said == "The database lacks our tables, or has old ones; run: dhan-pipeline migrate."


def test_a_database_that_is_newer_than_the_program_is_said(conn: connection, database_url: str, here: Here) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute("INSERT INTO schema_migrations (name) VALUES ('9999_future')")
    said = sentence(here("migrate", database_url=database_url))
    assert said == "The database is newer than this program, which knows no 9999_future; update it."


def test_a_user_who_may_not_is_said(postgres_url: str, database_url: str, here: Here) -> None:
    with closing(connect(postgres_url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("DROP ROLE IF EXISTS nobody_special")
        cursor.execute("CREATE ROLE nobody_special LOGIN PASSWORD 'hunter2'")
    parts = urlsplit(database_url)
    url = parts._replace(netloc=f"nobody_special:hunter2@127.0.0.1:{parts.port}").geturl()
    assert sentence(here("gaps", database_url=url)) == (
        "The database's user may not do that: permission denied for table feed_gaps."
    )


def test_a_server_that_gives_up_on_a_query_is_said(conn: connection, database_url: str, here: Here) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute("LOCK feed_gaps")
        said = sentence(here("gaps", database_url=f"{database_url}?options=-c%20lock_timeout%3D50"))
    assert said == ("The database broke off: canceling statement due to lock timeout. Try again when that is mended.")


SERVER = sorted(
    {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, psycopg2.OperationalError)}
    | {psycopg2.DatabaseError, psycopg2.InterfaceError, errors.ReadOnlySqlTransaction, errors.DataCorrupted},
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", SERVER, ids=lambda kind: kind.__name__)
def test_whatever_the_server_refuses_is_a_sentence(kind: type[psycopg2.Error]) -> None:
    said = explain(kind("could not extend file.\nHINT: Check free disk space."))
    assert said == "The database broke off: could not extend file. Try again when that is mended."


@pytest.mark.parametrize("name", ["ESTALE", "EBUSY", "ETXTBSY", "ENOSPC", "ENOTCONN"])
def test_whatever_the_machine_refuses_of_a_file_is_a_sentence(name: str) -> None:
    number = getattr(errno, name)
    said = explain(OSError(number, os.strerror(number), "data/journal"))
    assert said == f"data/journal cannot be used: {os.strerror(number)}."


@pytest.mark.parametrize(
    "error",
    [
        errors.SyntaxError("syntax error"),
        errors.UniqueViolation("duplicate key"),
        errors.InFailedSqlTransaction("aborted"),
        OSError(errno.EINVAL, "Invalid argument"),
        OSError(errno.EBADF, "Bad file descriptor", 7),
        OSError("no number"),
        ValueError("wrong"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_the_programs_own_fault_is_no_sentence(error: Exception) -> None:
    assert explain(error) is None


# The embedded PostgreSQL, and the data directory


@pytest.mark.parametrize("arguments", [("migrate",), ("db", "start"), ("gaps",), ("redrive",)], ids=" ".join)
def test_a_data_directory_that_is_a_file_is_said(arguments: tuple[str, ...], here: Here, folder: Path) -> None:
    said = sentence(here(*arguments, data_dir="file"))
    assert re.fullmatch(rf"{folder}/file/postgresql-\d+ cannot be used: Not a directory\.", said)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (None, r"There is no program postgres in directory\."),
        ("#!/bin/sh\nexit 1\n", r".*/directory/postgres does not run on this machine: .*\."),
        ("no program", r".*/directory/postgres does not run on this machine: .*\."),
    ],
    ids=["missing", "failing", "no program"],
)
def test_postgresql_that_is_not_there_is_said(program: str | None, said: str, here: Here, folder: Path) -> None:
    if program is not None:
        (folder / "directory" / "postgres").write_text(program)
        (folder / "directory" / "postgres").chmod(0o755)
    assert re.fullmatch(said, sentence(here("db", "start", postgres_bin_dir="directory")))


def test_root_without_another_user_is_told_so(here: Here, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: object) -> Any:
        raise KeyError

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(embedded.pwd, "getpwnam", nobody)
    said = sentence(here("db", "start", data_dir="data"))
    assert said == "PostgreSQL does not run as root, and there is neither a user postgres nor nobody."


# The token


@pytest.mark.parametrize("arguments", [("token", "check"), ("token", "renew"), ("ingest",)], ids=" ".join)
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("none.json", "There is no token file none.json (DHAN_TOKEN_FILE), and DHAN_CLIENT_ID and"),
        ("directory", "The token file directory (DHAN_TOKEN_FILE) cannot be read: Is a directory."),
        ("file/token.json", "The token file file/token.json (DHAN_TOKEN_FILE) "),
        ("binary", "The token file binary (DHAN_TOKEN_FILE) cannot be read: it is not text."),
        ("text", "The token file text (DHAN_TOKEN_FILE) is not a JSON object with access_token and client_id."),
        (
            "list.json",
            "The token file list.json (DHAN_TOKEN_FILE) is not a JSON object with access_token and client_id.",
        ),
        ("file", "The token file file (DHAN_TOKEN_FILE) is not a JSON object with access_token and client_id."),
    ],
)
def test_a_token_file_that_cannot_be_used_is_said(
    arguments: tuple[str, ...], file: str, said: str, here: Here, folder: Path, database_url: str
) -> None:
    subscribe(folder)
    settings = {"dhan_token_file": file, "dhan_api_url": "http://127.0.0.1:1", "database_url": database_url}
    assert last_sentence(here(*arguments, sessions="always", **settings)).startswith(said)


def test_a_token_whose_time_is_over_is_said(here: Here, folder: Path, database_url: str) -> None:
    token = make_token(CLIENT_ID, expires_in=-60)
    settings = {"dhan_client_id": CLIENT_ID, "dhan_access_token": token, "dhan_token_file": "none.json"}
    assert (
        last_sentence(here("token", "check", **settings))
        == "The access token was not found to be good: Its time is over."
    )
    assert "time is over" in sentence(here("token", "renew", **settings))
    subscribe(folder)
    done = here("ingest", database_url=database_url, sessions="always", **settings)
    assert "expired" in last_sentence(done)
    assert token not in done.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "A token can only be made with DHAN_PIN and DHAN_TOTP_SECRET set."),
        ({"dhan_pin": PIN}, "A token can only be made with DHAN_PIN and DHAN_TOTP_SECRET set."),
        ({"dhan_pin": PIN, "dhan_totp_secret": TOTP_SECRET}, "A token is made for a client id: set DHAN_CLIENT_ID."),
        (
            {"dhan_pin": PIN, "dhan_totp_secret": "not base32!", "dhan_client_id": "1"},
            "DHAN_TOTP_SECRET is not a base32 secret, such as an authenticator is set up with.",
        ),
        (
            {"dhan_pin": PIN, "dhan_totp_secret": TOTP_SECRET, "dhan_client_id": "1"},
            "Dhan does not give a token: it cannot be reached; are DHAN_API_URL and DHAN_AUTH_URL right?",
        ),
        (
            {"dhan_pin": PIN, "dhan_totp_secret": TOTP_SECRET, "dhan_client_id": "1", "dhan_auth_url": "nonsense"},
            "Dhan does not give a token: it cannot be reached; are DHAN_API_URL and DHAN_AUTH_URL right?",
        ),
    ],
)
def test_a_token_that_cannot_be_made_is_said(settings: dict[str, str], said: str, here: Here) -> None:
    done = here("token", "generate", **{"dhan_token_file": "t.json", "dhan_auth_url": "http://127.0.0.1:1", **settings})
    assert sentence(done) == said
    assert not [secret for secret in (TOTP_SECRET, "not base32!", f"pin={PIN}") if secret in done.stderr]


# Subscriptions


def subscribe(folder: Path) -> None:
    path = folder / "data" / "subscriptions_dhan.csv"
    write_subscriptions(path, [Subscription(generate_instrument_token("NSE_EQ", 2885), Mode.FULL, "RELIANCE")])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"The list of subscriptions data/subscriptions_dhan\.csv is empty\."),
        (
            "exchange_segment,security_id\nNSE_EQ,1\n",
            r"data/subscriptions_dhan\.csv, line 2: not a resolved subscription\.",
        ),
        ("\0\xff\0", r".*data/subscriptions_dhan\.csv.*\."),
    ],
    ids=["empty", "columns", "binary"],
)
def test_subscriptions_that_cannot_be_used_are_said(
    content: str, said: str, here: Here, folder: Path, database_url: str
) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "subscriptions_dhan.csv").write_text(content, encoding="latin-1")
    assert re.fullmatch(said, sentence(here("ingest", database_url=database_url)))


# The scrip master


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none", "The scrip master none cannot be read: No such file or directory."),
        ("directory", "The scrip master directory cannot be read: Is a directory."),
        ("binary", "binary is not a Dhan scrip master: its first line names none of the columns."),
        ("text", "text is not a Dhan scrip master: its first line names none of the columns."),
        ("file", "file is not a Dhan scrip master: its first line names none of the columns."),
    ],
)
@pytest.mark.parametrize("arguments", [("sync-instruments", "--csv-path"), ("simulate", "--master")])
def test_a_file_that_is_no_scrip_master_is_said(path: str, said: str, arguments: tuple[str, ...], here: Here) -> None:
    assert sentence(here(*arguments, path, database_url=AWAY)) == said


class Pages(http.server.BaseHTTPRequestHandler):
    """Answers that are no scrip master."""

    def do_GET(self) -> None:
        match self.path:
            case "/html":
                self._answer(200, b"<html><body>Under maintenance</body></html>", "text/html")
            case "/empty":
                self._answer(200, b"")
            case "/short":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"SEM_EXM_EXCH_ID,")
            case path:
                self._answer(int(path[1:]), b"no")

    def _answer(self, status: int, body: bytes, kind: str = "text/csv") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("page", ["html", "empty", "short", "404", "403", "500", "302"])
def test_a_page_that_is_no_scrip_master_is_said(page: str, pages: str, here: Here, folder: Path) -> None:
    done = here("sync-instruments", "--download", database_url=AWAY, dhan_scrip_master_url=f"{pages}/{page}")
    assert re.search(r"scrip master", last_sentence(done))
    assert not list((folder / "data").glob("scrip_master*.part"))


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/x", "http://nowhere.invalid/x", "ftp://x/y", "file:///etc/passwd", "word", "", "http://["],
)
def test_a_scrip_master_that_cannot_be_fetched_is_said(url: str, here: Here) -> None:
    done = here("sync-instruments", "--download", database_url=AWAY, dhan_scrip_master_url=url)
    assert last_sentence(done).startswith(f"The scrip master could not be downloaded from {url}")


def test_a_download_that_cannot_be_kept_is_said(pages: str, here: Here) -> None:
    done = here("sync-instruments", "--download", data_dir="file", dhan_scrip_master_url=f"{pages}/html")
    assert last_sentence(done).startswith("The scrip master could not be written to file/scrip_master.csv: ")


# The exchange and the demo


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--listen", "nowhere.invalid:0"), r"The exchange cannot listen: .*\."),
        (("--listen", "192.0.2.1:0"), r"The exchange cannot listen: .*\."),
        (("--token-file", "directory"), r"The token file directory cannot be written: Is a directory\."),
        (("--token-file", "file/t"), r"The token file file/t cannot be written: .*\."),
        (("--instruments", "directory"), r"The subscriptions directory cannot be read: Is a directory\."),
        (("--instruments", "text"), r"text, line 2: not a resolved subscription\."),
        (("--instruments", "binary"), r"binary, line \d+: not a resolved subscription\."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_exchange_that_cannot_open_is_said(arguments: tuple[str, ...], said: str, here: Here, master: Path) -> None:
    addresses = ("--rest", "127.0.0.1:0", "--master", str(master))
    if "--listen" not in arguments:
        addresses += ("--listen", "127.0.0.1:0")
    assert re.fullmatch(said, sentence(here("simulate", *addresses, *arguments)))


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("master") / "scrip_master.csv"
    write_synthetic_master(path, rows=2_000, on=date(2026, 11, 20))
    return path


def test_a_demo_that_cannot_start_is_said(here: Here, folder: Path) -> None:
    said = sentence(here("demo", "--data-dir", "file", "--port", "0"))
    assert said == f"The data directory {folder}/file cannot be used: Not a directory."
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = sentence(here("demo", "--port", str(port)))
    assert said == f"Port {port} is taken; choose another with --port, or --port 0 for a free one."


# Streams and signals


def test_a_reader_who_has_seen_enough_ends_the_program_quietly(folder: Path, postgres_url: str) -> None:
    url = create_database(postgres_url, "seen_enough")
    for arguments in (("migrate", "--dry-run"), ("--help",), ("decode", "02100001450b000000d0a144398a746a")):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing) as out:
            done = subprocess.run(
                command(*arguments),
                cwd=folder,
                env=environment(database_url=url),
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert (done.returncode, done.stderr) == (1, ""), arguments


def test_output_that_the_disk_does_not_take_is_a_failure(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("decode", "02100001450b000000d0a144398a746a"),
            cwd=folder,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_closed_streams_are_no_failure(folder: Path) -> None:
    shell = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(
        ["/bin/sh", "-c", shell, "sh", *command("decode", "02100001450b000000d0a144398a746a")],
        cwd=folder,
        env=environment(),
    )
    assert done.returncode == 0


def test_ctrl_c_ends_a_wait_for_a_database_that_does_not_answer(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://user:hunter2@127.0.0.1:{silent.getsockname()[1]}/ticks"
        with running("migrate", cwd=folder, database_url=url) as process:
            accepted, _ = silent.accept()
            with accepted:
                accepted.recv(1)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGINT, 130)
    assert (out, err) == ("", "")


def test_ctrl_c_ends_a_command_with_130(folder: Path) -> None:
    with running("decode", "-", cwd=folder) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("00" * 100_000)  # more than a pipe holds, so it has begun to read
        process.stdin.flush()
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):  # Python misses one that comes just before it waits for more
                process.wait(10)
        assert process.stderr.read() == ""
    assert process.returncode == 130


def test_ctrl_c_while_the_program_starts_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "run", interrupted)
    monkeypatch.setattr(app, "set_up_logging", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_an_error_of_the_program_itself_is_a_traceback_without_secrets(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make_token(CLIENT_ID)

    def broken(**_: object) -> None:
        raise RuntimeError(f"wss://feed/?token={token}&clientId=1 and postgresql://user:hunter2@host/ticks")

    monkeypatch.setattr("dhan_pipeline.cli.database.read_settings", broken)
    done = here("migrate")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("RuntimeError: wss://feed/?token=***&clientId=1 and postgresql://user:***@host/ticks\n")
    assert token not in done.stderr


def test_a_second_capture_is_told_who_runs(folder: Path, here: Here, database_url: str) -> None:
    subscribe(folder)
    writer = JournalWriter(folder / "data" / "journal", 0)
    try:
        done = here("ingest", database_url=database_url, sessions="always")
    finally:
        writer.close()
    assert last_sentence(done) == f"Capture 0 is already running: process {os.getpid()} holds its lock."


def test_a_supervised_capture_says_as_json_what_the_machine_refuses(folder: Path) -> None:
    done = run("ingest", "--supervised", cwd=folder, data_dir="file")
    assert done.returncode == 1
    event = json.loads(done.stdout)
    assert (event["event"], event["permanent"]) == ("error", False)
    assert done.stderr == f"dhan-pipeline: {event['message']}\n"
