import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from psycopg2.extensions import connection
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from dhan_pipeline.cli import capture
from dhan_pipeline.feeds.dhan.wire import LAYOUTS, ResponseCode
from dhan_pipeline.feeds.simulator.correspondence import kite_token_of
from dhan_pipeline.feeds.simulator.dhan import choose_instruments
from dhan_pipeline.feeds.simulator.faults import FAULTS
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.feeds.simulator.rest import DETAILED_PATH
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, make_token
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.store.engine import create_database
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.program import Here, last_sentence, run, running, sentence, wrong_usage

COMMANDS = (
    ("demo",),
    ("up",),
    ("simulate",),
    ("ingest",),
    ("worker",),
    ("watch",),
    ("live",),
    ("sync-instruments",),
    ("subscriptions",),
    ("find",),
    ("migrate",),
    ("db",),
    ("db", "start"),
    ("db", "stop"),
    ("db", "url"),
    ("db", "psql"),
    ("db", "to-timescaledb"),
    ("doctor",),
    ("why",),
    ("alert",),
    ("alert", "test"),
    ("gaps",),
    ("replay",),
    ("redrive",),
    ("token",),
    ("token", "check"),
    ("token", "generate"),
    ("token", "renew"),
    ("decode",),
)

#: RELIANCE at 1294.50, traded on 2026-08-06 at 13:20:57 IST; and its open interest.
TICKER = "02 1000 01 450b0000 00d0a144 398a746a"
OPEN_INTEREST = "05 0c00 02 4dc00000 999fd500"

MASTER_ROWS = 2_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the program runs: its relative paths lie here, and no `.env` does."""
    return tmp_path


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("master") / "scrip_master.csv"
    write_synthetic_master(path, rows=MASTER_ROWS, on=date(2026, 11, 20))
    return path


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(folder, monkeypatch, capsys)


def taken_port() -> socket.socket:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    return listening


# Help and usage


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_says_what_it_does_and_explains_every_option(words: tuple[str, ...], here: Here) -> None:
    done = here(*words, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    usage, _, rest = done.stdout.partition("\n\n")
    assert usage.startswith("Usage:")
    assert re.match(r"  [A-Z][^\n]+(\n  [^\n]+)*\.\n", rest)
    options = re.split(r"^  (?=--)", rest, flags=re.MULTILINE)[1:]
    assert options[-1].startswith("--help ")
    for option in options:
        assert re.match(r"--\S+( \S+)*\s{2,}[A-Z]", option), f"not explained: {option}"


def test_the_program_without_a_command_lists_the_commands(here: Here) -> None:
    done = here()
    assert done.returncode == 2
    for words in COMMANDS:
        if len(words) == 1:
            assert f"  {words[0]} " in done.stdout + done.stderr


def test_the_program_says_its_version(here: Here) -> None:
    done = here("--version")
    assert (done.returncode, done.stdout) == (0, f"dhan-pipeline {version('dhan-pipeline')}\n")


READING = (
    ("gaps",),
    ("watch",),
    ("live", "--port", "0"),
    ("find", "NIFTY"),
    ("replay", "--hour", "2026-11-20T09:00"),
    ("redrive",),
    ("migrate", "--dry-run"),
    ("db", "to-timescaledb"),
)


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_what_reads_a_database_makes_none(words: tuple[str, ...], here: Here, folder: Path) -> None:
    assert sentence(here(*words)).startswith(f"There is no database below {folder / 'data'} yet, and DATABASE_URL")
    assert [*folder.iterdir()] == []


def test_with_json_an_error_is_an_object_too(here: Here) -> None:
    assert "no database below" in sentence(here("gaps", "--json"))
    broken = here("why", "NIFTY", "--json")
    assert last_sentence(broken) == json.loads(broken.stdout)["verdict"]


def test_help_names_every_command_that_there_is(here: Here) -> None:
    listed = here("--help").stdout.partition("Commands:\n")[2]
    assert set(re.findall(r"^  ([a-z-]+)", listed, re.MULTILINE)) == {words[0] for words in COMMANDS}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("teleport",), "No such command 'teleport'"),
        (("decode",), "Missing argument 'HEX'"),
        (("decode", "--source", "other", "00"), "other is not a source that exists; use dhan or kite."),
        (("ingest", "--for", "soon"), "Invalid value for '--for'"),
        (("simulate", "--listen", "8765"), "8765 is not HOST:PORT"),
        (("simulate", "--rest", "127.0.0.1:70000"), "127.0.0.1:70000 is not HOST:PORT"),
        (("simulate", "--instruments", "0"), "at least one instrument has to trade"),
        (("sync-instruments",), "one of --download and --csv-path is needed"),
        (("sync-instruments", "--download", "--csv-path", "x.csv"), "one of --download and --csv-path is needed"),
        (("demo", "--instruments", "0"), "Invalid value for '--instruments'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_said_and_exits_2(arguments: tuple[str, ...], said: str, here: Here) -> None:
    assert said in wrong_usage(here(*arguments))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("capture", "99"), ("capture", "many"), ("retention_days", "0"), ("data_source", "nobody"), ("sessions", "never")],
)
def test_a_wrong_setting_is_named(setting: str, value: str, here: Here) -> None:
    said = sentence(here("ingest", **{setting: value}))
    assert said.startswith("The settings cannot be used: ")
    assert f"{setting.upper()}: Input should be" in said


# decode


def test_decode_shows_every_field_of_a_frame(here: Here) -> None:
    done = here("decode", TICKER)
    assert done.returncode == 0
    assert "ticker at 0, 16 bytes" in done.stdout
    for words in (("last_price", "1294.50 rupees"), ("last_trade_time", "2026-08-06 13:20:57 IST"), ("NSE_EQ",)):
        assert all(word in done.stdout for word in words)


def test_decode_prints_one_json_object(here: Here) -> None:
    done = here("decode", "--json", TICKER + OPEN_INTEREST)
    assert done.returncode == 0
    ticker, open_interest = json.loads(done.stdout)["packets"]
    assert ticker["rows"][4] == {"offset": 8, "field": "last_price", "raw": 1294.5, "meaning": "1294.50 rupees"}
    assert (open_interest["kind"], open_interest["offset"]) == ("open interest", 16)


def test_decode_reads_standard_input(folder: Path) -> None:
    done = run("decode", "--json", "-", cwd=folder, stdin=f"{TICKER}\n")
    assert [packet["kind"] for packet in json.loads(done.stdout)["packets"]] == ["ticker"]


def test_decode_shows_every_byte_of_what_it_cannot_read(here: Here) -> None:
    done = here("decode", "--json", TICKER + "63 0900 01 deadbeef 7f")
    assert done.returncode == 0
    _, unknown = json.loads(done.stdout)["packets"]
    assert unknown["error"]
    assert unknown["rows"][-1]["raw"] == "7f"
    assert sum(packet["size"] for packet in json.loads(done.stdout)["packets"]) == 16 + 9
    assert unknown["error"] in here("decode", TICKER + "63 0900 01 deadbeef 7f").stdout


def test_decode_shows_all_levels_of_depth(here: Here) -> None:
    layout = LAYOUTS[ResponseCode.FULL]
    full = bytes([ResponseCode.FULL, layout.size, 0, 1]) + bytes(layout.size - 4)
    done = here("decode", full.hex())
    assert "depth[4].ask_price" in done.stdout


@pytest.mark.parametrize("text", ["zz", "021", "0x02"])
def test_decode_refuses_what_is_not_hexadecimal(text: str, here: Here) -> None:
    assert "that is not hexadecimal" in wrong_usage(here("decode", text))


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_decode_refuses_an_empty_message(options: tuple[str, ...], here: Here) -> None:
    assert sentence(here("decode", "", *options)) == "The message is empty."


# The database


def test_the_embedded_database_is_started_named_and_stopped(open_dir: Path, folder: Path) -> None:
    data = {"data_dir": open_dir / "cli"}
    assert sentence(run("db", "url", cwd=folder, **data)).endswith("start it with: dhan-pipeline db start.")
    assert run("db", "stop", cwd=folder, **data).stdout == "It was not running.\n"
    started = run("db", "start", cwd=folder, **data)
    try:
        assert started.returncode == 0, started.stderr
        assert started.stdout.startswith("PostgreSQL runs; ")
        assert re.fullmatch(
            r"postgresql://postgres:\S+@127\.0\.0\.1:\d+/\w+\n", run("db", "url", cwd=folder, **data).stdout
        )
        migrated = run("migrate", cwd=folder, **data)
        assert migrated.stdout.startswith("add_dhan_security_id\n")
        assert run("migrate", cwd=folder, **data).stdout == "The schema is up to date.\n"
        asked = run("db", "psql", cwd=folder, stdin="SELECT count(*) + 41 FROM ticks;", **data)
        assert re.search(r"^ +41$", asked.stdout, re.MULTILINE), asked.stderr
        assert run("db", "start", cwd=folder, **data).returncode == 0
    finally:
        stopped = run("db", "stop", cwd=folder, **data)
    assert (stopped.returncode, stopped.stdout) == (0, "PostgreSQL stopped.\n")
    assert run("db", "url", cwd=folder, **data).returncode == 1


def test_a_command_stops_the_embedded_database_that_it_started(open_dir: Path, folder: Path) -> None:
    data = {"data_dir": open_dir / "short"}
    assert run("migrate", cwd=folder, **data).returncode == 0
    assert run("db", "stop", cwd=folder, **data).stdout == "It was not running.\n"


def test_a_folder_without_postgresql_is_said(folder: Path) -> None:
    said = sentence(run("db", "start", cwd=folder, postgres_bin_dir=folder))
    assert said == f"There is no program postgres in {folder}."


def test_migrate_dry_run_prints_sql_and_runs_nothing(postgres_url: str, folder: Path) -> None:
    url = create_database(postgres_url, "dry")
    dry = run("migrate", "--dry-run", cwd=folder, database_url=url)
    assert dry.returncode == 0
    assert "-- 0001_instruments.sql" in dry.stdout
    assert "CREATE TABLE IF NOT EXISTS ticks" in dry.stdout
    assert run("migrate", cwd=folder, database_url=url).stdout.startswith("add_dhan_security_id\n")
    assert run("migrate", "--dry-run", cwd=folder, database_url=url).stdout == ""


def test_a_database_that_is_away_is_said(folder: Path) -> None:
    said = sentence(run("migrate", cwd=folder, database_url="postgresql://nobody@127.0.0.1:1/none"))
    assert said.startswith("The database cannot be used: connection to server")


# sync-instruments


def count(conn: connection, query: str) -> int:
    with conn, conn.cursor() as cursor:
        cursor.execute(query)
        number: int = cursor.fetchall()[0][0]
    return number


def test_instruments_are_synced_from_a_file(database_url: str, conn: connection, master: Path, folder: Path) -> None:
    arguments = ("sync-instruments", "--db-url", database_url, "--csv-path", str(master))
    first = run(*arguments, "--json", "--batch-size", "500", cwd=folder)
    assert first.returncode == 0, first.stderr
    facts = json.loads(first.stdout)
    assert facts["inserted"] == count(conn, "SELECT count(*) FROM active_instruments") > 1_000
    assert (facts["updated"], facts["unchanged"], facts["deactivated"]) == (0, 0, 0)

    second = run(*arguments, cwd=folder)
    assert re.search(rf"^ +unchanged +{facts['inserted']:,}$", second.stdout, re.MULTILINE)
    assert re.search(r"^ +inserted +0$", second.stdout, re.MULTILINE)


def test_a_file_that_is_no_scrip_master_is_said(database_url: str, folder: Path) -> None:
    (folder / "other.csv").write_text("a,b\n1,2\n")
    arguments = ("sync-instruments", "--db-url", database_url, "--csv-path")
    assert "is not a Dhan scrip master" in sentence(run(*arguments, "other.csv", cwd=folder))
    assert "cannot be read: No such file or directory" in sentence(run(*arguments, "none.csv", cwd=folder))


def test_a_database_without_tables_is_said(postgres_url: str, master: Path, folder: Path) -> None:
    url = create_database(postgres_url, "without_tables")
    said = sentence(run("sync-instruments", "--db-url", url, "--csv-path", str(master), cwd=folder))
    assert said == "The database has no instruments table yet; migrate it first."


def test_a_failed_download_is_said(database_url: str, folder: Path) -> None:
    with taken_port() as listening:
        port = listening.getsockname()[1]
    said = last_sentence(
        run(
            "sync-instruments",
            "--download",
            cwd=folder,
            database_url=database_url,
            dhan_scrip_master_url=f"http://127.0.0.1:{port}/master.csv",
        )
    )
    assert said.startswith("The scrip master could not be downloaded from ")


# gaps and redrive

#: A reset of 30 s in session, one at night, and one that lasts.
GAPS = """
INSERT INTO feed_gaps (capture, gap_id, connection, instruments, started_at, ended_at, cause, detail, recovery) VALUES
(0, 1, 0, '{1103806597957}', '2026-11-20 09:59:50+05:30', '2026-11-20 10:00:20+05:30', 'reset', 'lost', 'connected'),
(0, 2, 0, '{1103806597957}', '2026-11-20 20:00:00+05:30', '2026-11-20 21:00:00+05:30', 'stop', '', 'started'),
(0, 3, 1, '{1103806597957}', '2026-11-23 15:00:00+05:30', NULL, 'token', 'refused', '')
"""


@pytest.fixture
def with_gaps(conn: connection, database_url: str) -> dict[str, str]:
    with conn, conn.cursor() as cursor:
        cursor.execute(GAPS)
    return {"database_url": database_url}


def test_the_gaps_of_a_day_are_listed_with_their_seconds_in_session(with_gaps: dict[str, str], here: Here) -> None:
    done = here("gaps", "--day", "2026-11-20", **with_gaps)
    assert (done.returncode, done.stderr) == (0, "")
    title, *_, row, _, outside = (line.rstrip() for line in done.stdout.splitlines())
    assert title == "Gaps in session from 2026-11-20 00:00 to 2026-11-21 00:00 IST"
    assert re.split(r" {2,}", row.strip()) == [
        "09:59:50",
        "10:00:20",
        "30.0",
        "dhan 0",
        "1",
        "reset",
        "lost; connected",
    ]
    assert outside == "1 more was outside sessions."


def test_the_gaps_of_an_hour_are_the_parts_that_lie_in_it(with_gaps: dict[str, str], here: Here) -> None:
    listed = json.loads(here("gaps", "--hour", "2026-11-20T09:00", "--json", **with_gaps).stdout)
    assert (listed["from"], listed["to"]) == ("2026-11-20T09:00:00+05:30", "2026-11-20T10:00:00+05:30")
    [gap] = listed["gaps"]
    assert (gap["ended_at"], gap["session_seconds"]) == ("2026-11-20T10:00:00+05:30", 10.0)


def test_a_gap_that_lasts_has_no_end(with_gaps: dict[str, str], here: Here) -> None:
    for since in ("2026-11-23T15:20", "2026-11-23T09:50+00:00"):
        [gap] = json.loads(here("gaps", "--since", since, "--json", **with_gaps).stdout)["gaps"]
        assert (gap["started_at"], gap["ended_at"]) == ("2026-11-23T15:20:00+05:30", None)
        assert (gap["cause"], gap["detail"], gap["connection"]) == ("token", "refused", 1)
        assert gap["session_seconds"] >= 900
    assert " lasts " in here("gaps", "--since", "2026-11-23T15:20", **with_gaps).stdout


def test_where_there_are_no_gaps_that_is_said(database_url: str, here: Here) -> None:
    done = here("gaps", "--day", "2026-11-19", database_url=database_url)
    assert done.stdout == "No capture has ever reported to this database, so no gap is known.\n"
    assert json.loads(here("gaps", "--json", database_url=database_url).stdout)["gaps"] == []


def test_where_nothing_was_rejected_nothing_is_redriven(database_url: str, here: Here) -> None:
    done = here("redrive", database_url=database_url)
    assert (done.returncode, done.stdout) == (0, "0 of 0 rejected packets are accepted now.\n")
    facts = json.loads(here("redrive", "--reason", "unknown instrument", "--json", database_url=database_url).stdout)
    assert (facts["examined"], facts["driven"]) == (0, 0)


# The exchange, and a capture of it


@pytest.fixture
def exchange(master: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A simulated exchange of ten instruments in a process of its own, its URLs and its token file."""
    token_file = tmp_path / "token.json"
    arguments = ("--listen", "127.0.0.1:0", "--rest", "127.0.0.1:0", "--instruments", "10", "--rate", "1000")
    arguments += ("--master", str(master), "--token-file", str(token_file), "--json")
    with running("simulate", *arguments, cwd=tmp_path) as process:
        assert process.stdout is not None
        urls = json.loads(process.stdout.readline())
        yield urls | {"token_file": str(token_file)}
        process.send_signal(signal.SIGTERM)
        summary, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        assert json.loads(summary)["sent"] is not None


@pytest.fixture
def capture_settings(exchange: dict[str, str], master: Path, database_url: str, tmp_path: Path) -> dict[str, Any]:
    """Settings of a capture of everything that the exchange trades."""
    settings = {
        "data_dir": tmp_path / "data",
        "database_url": database_url,
        "dhan_feed_url": exchange["feed_url"],
        "dhan_scrip_master_url": exchange["rest_url"] + DETAILED_PATH,
        "dhan_token_file": exchange["token_file"],
        "sessions": "always",
    }
    write_subscriptions(
        tmp_path / "data" / "subscriptions_dhan.csv",
        [Subscription(token, Mode.FULL, "") for token in choose_instruments(master, 10)],
    )
    return settings


@pytest.fixture
def account(exchange: dict[str, str]) -> dict[str, Any]:
    """Settings of the practice account, whose token file the exchange has written."""
    return {
        "data_source": "dhan",
        "dhan_token_file": exchange["token_file"],
        "dhan_client_id": exchange["client_id"],
        "dhan_pin": exchange["pin"],
        "dhan_totp_secret": exchange["totp_secret"],
        "dhan_api_url": exchange["rest_url"],
        "dhan_auth_url": exchange["rest_url"],
    }


def test_a_good_token_is_said_to_be_good(account: dict[str, Any], here: Here) -> None:
    done = here("token", "check", **account)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Client id 1000000001, from the token file ")
    assert re.search(r"^Its time is over at 20\d\d-\d\d-\d\d \d\d:\d\d IST\.$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("The token is good, and the account has a data plan.\n")
    report = json.loads(here("token", "check", "--json", **account).stdout)
    assert (report["good"], report["problem"], report["client_id"]) == (True, None, "1000000001")


def test_a_token_of_another_account_is_not_good(account: dict[str, Any], here: Here) -> None:
    token = json.loads(Path(account["dhan_token_file"]).read_text())["access_token"]
    settings = {**account, "dhan_token_file": "none.json", "dhan_client_id": "7", "dhan_access_token": token}
    assert "not found to be good: It belongs to the client id 1000000001, not to 7" in last_sentence(
        here("token", "check", **settings)
    )
    done = here("token", "check", "--json", **settings)
    assert done.returncode == 1
    assert json.loads(done.stdout)["good"] is False
    assert token not in done.stdout + done.stderr


def test_a_token_is_made_saved_and_good_and_never_shown(account: dict[str, Any], here: Here) -> None:
    file = Path(account["dhan_token_file"])
    before = json.loads(file.read_text())["access_token"]
    done = here("token", "generate", **account)
    assert done.returncode == 0, done.stderr
    token = json.loads(file.read_text())["access_token"]
    assert token != before
    assert re.fullmatch(
        r"A new token of client id 1000000001, good until \S+ \S+ IST, is in the token file \S+token\.json\.\n",
        done.stdout,
    )
    secrets = (token, account["dhan_pin"], account["dhan_totp_secret"])
    assert not [secret for secret in secrets if secret in done.stdout + done.stderr]
    assert here("token", "check", **account).returncode == 0
    again = here("token", "generate", **account)
    assert "Dhan gives one every 130 s at most." in sentence(again)
    assert not [secret for secret in secrets if secret in again.stderr]


def test_a_token_is_renewed_without_pin(account: dict[str, Any], here: Here) -> None:
    file = Path(account["dhan_token_file"])
    before = file.read_text()
    done = here("token", "renew", "--json", **{**account, "dhan_pin": "", "dhan_totp_secret": ""})
    assert done.returncode == 0, done.stderr
    saved = json.loads(done.stdout)
    assert (saved["client_id"], set(saved)) == ("1000000001", {"client_id", "source", "expires_at"})
    assert file.read_text() != before
    assert here("token", "check", **account).returncode == 0


def test_faults_happen_as_they_were_ordered(master: Path, folder: Path) -> None:
    token = make_token(CLIENT_ID)
    arguments = (
        "--listen",
        "127.0.0.1:0",
        "--instruments",
        "2",
        "--master",
        str(master),
        "--fault",
        "close=1011",
        "--json",
    )
    with running("simulate", *arguments, cwd=folder) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["feed_url"]
        with connect(f"{url}/?version=2&token={token}&clientId={CLIENT_ID}&authType=2") as socket_:
            with pytest.raises(ConnectionClosedError) as closed:
                list(socket_)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1011


def test_the_help_lists_every_fault(here: Here) -> None:
    listed = here("simulate", "--help").stdout.partition("Faults:\n")[2]
    assert re.findall(r"^  ([a-z-]+)  ", listed, re.MULTILINE) == list(FAULTS)


def test_the_exchange_says_where_it_listens_and_stops_when_asked(master: Path, folder: Path) -> None:
    arguments = ("simulate", "--listen", "127.0.0.1:0", "--instruments", "2", "--master", str(master))
    with running(*arguments, cwd=folder) as process:
        assert process.stdout is not None
        assert re.fullmatch(r"feed_url: ws://127\.0\.0\.1:\d+\n", process.stdout.readline())
        assert re.fullmatch(r"rest_url: http://127\.0\.0\.1:\d+\n", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_the_exchange_of_both_brokers_is_two_and_the_same_instruments_trade(master: Path, folder: Path) -> None:
    arguments = ["simulate", "--source", "kite,dhan", "--instruments", "4", "--master", str(master), "--json"]
    for option in ("--listen", "--rest"):
        arguments += [option, "127.0.0.1:0"]
    for source in ("kite", "dhan"):
        arguments += ["--token-file", f"{source}_token.json"]
    with running(*arguments, cwd=folder) as process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        kite, dhan = facts["kite"], facts["dhan"]
        assert list(facts) == ["kite", "dhan"]
        assert list(kite) == ["feed_url", "rest_url", "api_key", "api_secret", "access_token"]
        assert len({urlsplit(of[name]).port for of in (kite, dhan) for name in ("feed_url", "rest_url")}) == 4
        token = json.loads((folder / "kite_token.json").read_text())["access_token"]
        assert set(json.loads((folder / "dhan_token.json").read_text())) >= {"access_token", "client_id"}
        lines = httpx.get(f"{kite['rest_url']}/instruments", trust_env=False).text.splitlines()
        dump = {int(line.partition(",")[0]) for line in lines[1:]}
        tokens = [kite_token_of(token) for token in choose_instruments(master, 4)]
        assert dump.issuperset(tokens)
        for given in (token, kite["access_token"]):
            with connect(f"{kite['feed_url']}?api_key={kite['api_key']}&access_token={given}") as socket_:
                socket_.send(json.dumps({"a": "subscribe", "v": tokens}))
                first = socket_.recv()
                assert isinstance(first, bytes)
                assert first[:2] == bytes.fromhex("0004")
        process.send_signal(signal.SIGTERM)
        summary, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        assert json.loads(summary)["dhan"] == {"sent": {}, "skipped": 0}
        assert json.loads(summary)["kite"]["sent"]["quote"] >= 2


@pytest.mark.parametrize("option", ["--listen", "--rest"])
def test_a_taken_port_is_said(option: str, master: Path, folder: Path) -> None:
    ports = {"--listen": "127.0.0.1:0", "--rest": "127.0.0.1:0"}
    with taken_port() as listening:
        ports[option] = f"127.0.0.1:{listening.getsockname()[1]}"
        words = [word for pair in ports.items() for word in pair]
        said = sentence(run("simulate", *words, "--instruments", "2", "--master", str(master), cwd=folder))
    assert said.startswith("The exchange cannot listen: ")
    assert "address already in use" in said


def test_a_token_file_that_cannot_be_written_is_said(folder: Path) -> None:
    (folder / "file").touch()
    said = sentence(run("simulate", "--token-file", "file/token.json", cwd=folder))
    assert said.startswith("The token file file/token.json cannot be written: ")


def test_instruments_are_synced_from_a_download(capture_settings: dict[str, Any], master: Path, folder: Path) -> None:
    done = run("sync-instruments", "--download", "--json", cwd=folder, **capture_settings)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["inserted"] > 1_000
    assert (capture_settings["data_dir"] / "scrip_master.csv").read_bytes() == master.read_bytes()


def test_ingest_captures_for_a_while_and_accounts_for_every_packet(
    capture_settings: dict[str, Any], master: Path, conn: connection, folder: Path
) -> None:
    synced = run("sync-instruments", "--csv-path", str(master), cwd=folder, **capture_settings)
    assert synced.returncode == 0, synced.stderr
    done = run("ingest", "--for", "3", cwd=folder, **capture_settings)
    assert done.returncode == 0, done.stderr
    assert "ticks stored" in done.stderr
    assert count(conn, "SELECT count(*) FROM ticks") > 500
    assert count(conn, "SELECT sum(packets - ticks - state - control - rejected) FROM ingest_ledger") == 0
    assert count(conn, "SELECT sum(ticks) FROM ingest_ledger") == count(conn, "SELECT count(*) FROM ticks")


def test_a_supervised_ingest_prints_json_lines_and_stops_when_standard_input_closes(
    capture_settings: dict[str, Any], folder: Path
) -> None:
    with running("ingest", "--supervised", cwd=folder, **capture_settings) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "status" and events[-1]["messages"]:
                process.stdin.close()
        assert process.wait(20) == 0
    assert events[0]["event"] == "started"
    assert events[0]["pid"] == process.pid
    assert events[-1] == {"event": "stopped", "reason": "asked to stop"}


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The reading end of a full pipe, to which a supervised capture prints."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"\n" * 4096)
    monkeypatch.setattr(capture, "_STDOUT", writing)
    yield reading
    os.close(reading)
    os.close(writing)


def read_lines(pipe: int, *, until: str) -> list[dict[str, Any]]:
    """What comes through a pipe, to the first event of this name."""
    text = b""
    while f'"{until}"'.encode() not in text or not text.endswith(b"\n"):
        text += os.read(pipe, 1 << 20)
    return [json.loads(line) for line in text.splitlines() if line]


def test_what_a_supervisor_did_not_read_is_said_later_but_for_status_lines(unread: int) -> None:
    lines = capture._Lines()
    kept = [
        {"event": "hour_complete", "hour": "2026-11-20T09:00"},
        {"event": "gap", "detail": "x" * 100_000},  # more than a pipe takes at once
        {"event": "warning", "message": "late"},
    ]
    for event in kept:
        lines.say(event)
        lines.say({"event": "status"})
    reader = ThreadPoolExecutor(1).submit(read_lines, unread, until="warning")
    lines.finish()
    assert reader.result() == kept
    lines.say({"event": "status"})
    assert read_lines(unread, until="status") == [{"event": "status"}]


def test_what_waits_for_a_supervisor_is_bounded_and_holds_nothing_up(
    unread: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "_LINES_KEPT", 3)
    monkeypatch.setattr(capture, "_FINISH_S", 0.01)
    lines = capture._Lines()
    for number in range(10):
        lines.say({"event": "gap", "number": number})
    lines.finish()
    reader = ThreadPoolExecutor(1).submit(read_lines, unread, until="status")
    while not reader.done():
        lines.say({"event": "status"})
    assert [event["number"] for event in reader.result() if event["event"] == "gap"] == [0, 1, 2]


def test_a_supervisor_is_told_no_secrets(unread: int) -> None:
    os.read(unread, 1 << 20)
    lines = capture._Lines()
    lines.say({"event": "warning", "message": 'postgresql://user:hunter2@host/db and {"pin": "1234"}', "ticks": 1})
    shown = {"event": "warning", "message": 'postgresql://user:***@host/db and {"pin": "***"}', "ticks": 1}
    assert read_lines(unread, until="warning") == [shown]


def test_a_missing_token_is_said(database_url: str, folder: Path) -> None:
    path = folder / "data" / "subscriptions_dhan.csv"
    write_subscriptions(path, [Subscription(generate_instrument_token("NSE_EQ", 2885), Mode.FULL, "RELIANCE")])
    done = run("ingest", cwd=folder, database_url=database_url, dhan_token_file="no_token.json", sessions="always")
    said = last_sentence(done)
    assert said.startswith("There is no token file no_token.json (DHAN_TOKEN_FILE), ")


def test_missing_subscriptions_are_said(database_url: str, folder: Path) -> None:
    said = sentence(run("ingest", cwd=folder, database_url=database_url))
    assert said.startswith("There are no resolved subscriptions at data/subscriptions_dhan.csv; ")


def test_a_supervised_ingest_says_what_is_wrong_as_json_too(database_url: str, folder: Path) -> None:
    for settings in ({"database_url": database_url}, {"capture": 99}):
        done = run("ingest", "--supervised", cwd=folder, **settings)
        assert done.returncode == 1
        event = json.loads(done.stdout)
        assert event["event"] == "error"
        assert event["message"] in done.stderr
