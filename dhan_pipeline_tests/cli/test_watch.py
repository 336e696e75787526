"""The live view in a terminal of its own, and as lines; and the command that serves the page."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import termios
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import pytest
from psycopg2.extensions import connection
from rich.console import Console

from dhan_pipeline.cli.live import names_of
from dhan_pipeline.cli.watch import _screen
from dhan_pipeline.clock import Clock
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.quality.now import read_now
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline.store.ledger import write_status
from dhan_pipeline_tests.broker import RELIANCE, TCS, insert_instruments
from dhan_pipeline_tests.ingest.feed import outage
from dhan_pipeline_tests.program import Here, command, environment, running, sentence
from dhan_pipeline_tests.status import mover, status


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(tmp_path, monkeypatch, capsys)


@pytest.fixture
def capture(conn: connection) -> connection:
    """A capture that is well; what it says stays fresh however long a program takes to start."""
    insert_instruments(conn, [RELIANCE, TCS])
    write_status(conn, 0, "dhan", status())
    with conn, conn.cursor() as cursor:
        cursor.execute("UPDATE captures SET updated_at = now() + interval '1 hour'")
    return conn


def screen(conn: connection, width: int = 80, height: int = 24, clock: Clock | None = None) -> list[str]:
    """The lines of one look, now or at the time of a clock."""
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(_screen(read_now(conn, Settings(_env_file=None), clock or Clock()), console))
    return [line.rstrip() for line in shown.get().splitlines()]


def test_the_view_lives_in_a_terminal_and_ctrl_c_ends_it_well(
    capture: connection, tmp_path: Path, database_url: str
) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    variables = environment(database_url=database_url) | {"TERM": "xterm"}
    variables.pop("COLUMNS")
    with closing(os.fdopen(master, "rb", 0)) as terminal:
        process = subprocess.Popen(
            command("watch", "--every", "0.2"), cwd=tmp_path, env=variables, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        said = b""
        while said.count(b"S2885") < 2:
            said += terminal.read(4096)
        process.send_signal(signal.SIGINT)
        while b"\x1b[?1049l" not in said:  # the terminal is as it was
            said += terminal.read(4096)
        assert process.wait(20) == 0
    assert "✓ All is well" in said.decode(errors="replace")


def test_a_look_fits_a_small_terminal_and_has_more_movers_in_a_tall_one(capture: connection) -> None:
    ten = {"up": [mover(RELIANCE, 9.0)] * 10, "down": [mover(TCS, -9.0)] * 10}
    segments = dict.fromkeys(
        ("IDX_I", "NSE_EQ", "NSE_FNO", "NSE_CURRENCY", "BSE_EQ", "MCX_COMM", "BSE_CURRENCY", "BSE_FNO"),
        status()["segments"]["NSE_EQ"],
    )
    write_status(capture, 0, "dhan", status(movers={"shares": ten}, segments=segments))
    lines = screen(capture)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert re.match(r" ✓ All is well +\w{3} \d\d \w{3} \d\d:\d\d:\d\d IST", lines[0])
    assert re.fullmatch(r" dhan +2 of 2 +720 +990 +0 +0.1 s +10 ms +20 ms", lines[3])
    assert re.fullmatch(r" NSE_EQ +always open +90 +now +9 of 10", lines[7])
    assert sum("S2885" in line for line in lines) == 5
    assert re.fullmatch(r" S2885 +100.00 +\+9.00 % +S11536 +100.00 +-9.00 %", lines[-4])
    assert lines[-1] == " No gap in session today."
    assert sum("S2885" in line for line in screen(capture, 120, 40)) == 10


def test_what_is_wrong_stands_on_top_with_the_capture_that_is_dead(capture: connection) -> None:
    noon = Clock(parse_hour_key("2026-11-20T12:00"), speed=1e-9)
    now_ns = noon.now_ns()
    with capture, capture.cursor() as cursor:
        cursor.execute("UPDATE captures SET updated_at = now() - interval '1 minute'")
        gap = Gap(1, 0, now_ns - 9_000_000_000, Cause.RESET, "", (RELIANCE, TCS), now_ns - 1_000_000_000)
        apply_notes(cursor, 0, [(1, gap)])
    lines = screen(capture, clock=noon)
    assert lines[0].startswith(" ✗ 1 problem")
    assert lines[1].startswith("   Capture 0 (dhan) has said nothing since ")
    assert any(re.match(r" dhan +silent since \d\d:\d\d:\d\d +0 +990 ", line) for line in lines)
    assert re.search(r"Gaps in session today: 1, 8.0 s in all\. Last: .*, dhan 0, reset\.", " ".join(lines))


def test_lines_of_json_go_on_while_the_database_is_away(
    capture: connection, tmp_path: Path, postgres_url: str, database_url: str
) -> None:
    with running("watch", "--json", "--every", "0.2", cwd=tmp_path, database_url=database_url) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["headline"] == "All is well"
        with outage(postgres_url, database_url):
            while "problem" not in (away := json.loads(process.stdout.readline())):
                pass
            assert away["problem"].startswith("The database cannot be used:")
        while "captures" not in json.loads(process.stdout.readline()):
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_the_page_is_served_until_somebody_ends_it(capture: connection, tmp_path: Path, database_url: str) -> None:
    with running("live", "--port", "0", cwd=tmp_path, database_url=database_url) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()
        found = re.fullmatch(r"The live page is on (http://127\.0\.0\.1:\d+); Ctrl-C ends it\.\n", said)
        assert found, said
        with urlopen(f"{found[1]}/now") as reply:
            assert json.load(reply)["good"] is True
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "localhost", "::1"])
def test_on_this_machines_own_address_names_of_others_are_refused(host: str) -> None:
    assert {"127.0.0.1", "localhost", "::1", "[::1]", host} == set(names_of(host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.9", "pi.lan"])
def test_on_an_address_that_others_reach_they_may_call_it_as_they_do(host: str) -> None:
    assert names_of(host) == ["*"]


def test_a_port_that_is_taken_is_said(here: Here) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = sentence(here("live", "--port", str(port), database_url="postgresql://nobody@127.0.0.1/none"))
    assert said.startswith(f"The live page cannot be on 127.0.0.1:{port} (Address already in use")
