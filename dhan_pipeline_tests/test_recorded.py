"""A journal that was recorded is sent again: by the program, and into another journal."""

import asyncio
import json
import signal
import struct
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import typer
from websockets.sync.client import connect

from dhan_pipeline.cli.recorded import parse_interval, read_recording
from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.dhan.client import Feed
from dhan_pipeline.feeds.simulator.replay import DhanReplay
from dhan_pipeline.feeds.simulator.rest import COMPACT_PATH
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, make_token
from dhan_pipeline.gaps import Cause
from dhan_pipeline.ingest.capture import Receiver
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.journal.notes import NOTE_CONNECTION, Started, encode_note
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.program import Here, running, sentence, wrong_usage

NINE = parse_hour_key("2026-11-20T09:00")
SECOND_NS = 1_000_000_000
FULL_BODY = bytes(range(154))


def full(security_id: int, number: int) -> bytes:
    return struct.pack("<BHBII", 8, 162, 1, security_id, number) + FULL_BODY[4:]


def record(journal_dir: Path, capture: int, messages: Sequence[tuple[int, bytes]], connection: int = 0) -> None:
    """Messages with their times, a block each."""
    with closing(JournalWriter(journal_dir, capture)) as writer:
        for at_ns, payload in messages:
            writer.append([at_ns], [connection], [connection == NOTE_CONNECTION], [payload])


def found(journal_dir: Path, start_ns: int = 0, end_ns: int = 1 << 61) -> list[bytes]:
    """The payloads of the messages in a time."""
    return list(
        chain.from_iterable(
            [piece.payload[at : at + size] for at, size in zip(piece.start.tolist(), piece.size.tolist(), strict=True)]
            for piece in read_recording(journal_dir, start_ns, end_ns).messages
        )
    )


@pytest.fixture
def journal_dir(tmp_path: Path) -> Path:
    """Two instruments in turn, every 100 s from 09:00:00 to 11:05:00, over three hours."""
    record(tmp_path / "journal", 0, [(NINE + n * 100 * SECOND_NS, full(1 + n % 2, n)) for n in range(76)])
    return tmp_path / "journal"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(tmp_path, monkeypatch, capsys)


def test_a_recording_is_what_was_received_in_the_time_asked_for(journal_dir: Path) -> None:
    everything = [full(1 + n % 2, n) for n in range(76)]
    assert found(journal_dir) == everything
    assert found(journal_dir, NINE + HOUR_NS) == everything[36:]
    assert found(journal_dir, NINE + 1000 * SECOND_NS, NINE + 2000 * SECOND_NS) == everything[10:20]
    assert found(journal_dir, NINE + 950 * SECOND_NS, NINE + 2000 * SECOND_NS + 1) == everything[10:21]
    recording = read_recording(journal_dir, NINE + 950 * SECOND_NS, NINE + 2000 * SECOND_NS)
    assert recording.first_ns == NINE + 1000 * SECOND_NS
    recording = read_recording(journal_dir, NINE, 1 << 61)
    assert recording.last_ns == NINE + 7500 * SECOND_NS


def test_a_block_that_began_before_the_time_is_read_from_there(tmp_path: Path) -> None:
    with closing(JournalWriter(tmp_path, 0)) as writer:
        writer.append([NINE + n * SECOND_NS for n in range(5)], [0] * 5, [False] * 5, [b"%d" % n for n in range(5)])
    assert found(tmp_path, NINE + 2 * SECOND_NS, NINE + 4 * SECOND_NS) == [b"2", b"3"]


def test_captures_are_merged_and_notes_left_out(tmp_path: Path) -> None:
    record(tmp_path, 0, [(NINE + n, b"a%d" % n) for n in (0, 4, 5)])
    record(tmp_path, 3, [(NINE + n, b"b%d" % n) for n in (1, 2, 7)])
    record(tmp_path, 3, [(NINE + 8, encode_note(Started(1, None, Cause.STOP, 0)))], NOTE_CONNECTION)
    assert found(tmp_path) == [b"a0", b"b1", b"b2", b"a4", b"a5", b"b7"]


def test_where_there_is_nothing_that_is_said(tmp_path: Path, journal_dir: Path) -> None:
    with pytest.raises(PipelineError, match=r"There is no journal in .*nowhere: it is a folder of captures"):
        read_recording(tmp_path / "nowhere", 0, 1 << 61)
    hours = "its hours are 2026-11-20T09:00 to 2026-11-20T11:00"
    with pytest.raises(PipelineError, match=rf"has no packets of that time: {hours}\."):
        read_recording(journal_dir, NINE + 5 * HOUR_NS, 1 << 61)


def test_of_both_brokers_what_one_of_them_sent_is_sent_again(tmp_path: Path) -> None:
    record(tmp_path, 16, [(NINE + 1, b"k")])
    with pytest.raises(PipelineError, match=r"has nothing of dhan: choose another --source\."):
        read_recording(tmp_path, 0, 1 << 61)
    record(tmp_path, 0, [(NINE + 2, b"d")])
    assert found(tmp_path) == [b"d"]
    assert [piece.payload for piece in read_recording(tmp_path, 0, 1 << 61, "kite").messages] == [b"k"]


def test_the_program_sends_what_kite_sent(tmp_path: Path) -> None:
    sent = [bytes.fromhex(f"0001 0008 000b4501 {price:08x}") for price in range(34_400, 34_420)]
    record(tmp_path / "journal", 16, [(NINE + n, message) for n, message in enumerate(sent)])
    arguments = ["--source", "kite", "--from-journal", str(tmp_path / "journal"), "--speed", "max", "--once", "--json"]
    with running("simulate", *arguments, "--listen", "127.0.0.1:0", cwd=tmp_path) as process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        with connect(
            f"{facts['feed_url']}?api_key={facts['api_key']}&access_token={facts['access_token']}"
        ) as websocket:
            websocket.send('{"a":"subscribe","v":[738561, 265]}')
            received = [message for message in websocket if len(message) > 1]
        assert received == sent
        summary, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert json.loads(summary)["sent"]["ltp"] == 20
    assert (
        "The recording has ended: 20 packets in it, " in said
    )  # what is sent counts heartbeats, where a second passed
    assert "Nothing was recorded of 1 of the 2 instruments asked for: INDICES 1." in said


def test_a_time_is_said_as_a_day_or_as_two_instants() -> None:
    day_ns = 24 * HOUR_NS
    midnight = NINE - 9 * HOUR_NS
    assert parse_interval("2026-11-20", None, None) == (midnight, midnight + day_ns)
    assert parse_interval(None, "2026-11-20T09:00", "2026-11-20T04:30:00.5+00:00") == (
        NINE,
        NINE + HOUR_NS + SECOND_NS // 2,
    )
    start_ns, end_ns = parse_interval(None, None, None)
    assert start_ns == 0
    assert end_ns > NINE
    for wrong in (
        ("20 November", None, None),
        ("2026-11-20", "2026-11-20T09:00", None),
        (None, "nine", None),
        (None, None, "1969-01-01"),
        (None, "2110-01-01", None),
        (None, "0001-01-01", None),
        (None, "2026-11-20T10:00", "2026-11-20T10:00"),
    ):
        with pytest.raises(typer.BadParameter):
            parse_interval(*wrong)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--speed", "10"), "it goes with --from-journal only"),
        (("--once",), "it goes with --from-journal only"),
        (("--day", "2026-11-20"), "it goes with --from-journal only"),
        (("--from-journal", "journal", "--rate", "5"), "it does not go with --from-journal"),
        (("--from-journal", "journal", "--instruments", "5"), "it does not go with --from-journal"),
        (("--from-journal", "journal", "--seed", "5"), "it does not go with --from-journal"),
        (("--from-journal", "journal", "--fault", "wrong-epoch"), "wrong-epoch does not go with --from-journal"),
        (("--from-journal", "journal", "--speed", "0"), "0 is neither a number above 0 nor max"),
        (("--from-journal", "journal", "--speed", "nan"), "nan is neither a number above 0 nor max"),
        (("--from-journal", "journal", "--speed", "fast"), "fast is neither a number above 0 nor max"),
        (("--from-journal", "journal", "--day", "x"), "x is not a day such as 2026-11-20"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(here: Here, arguments: tuple[str, ...], said: str) -> None:
    assert said in " ".join(wrong_usage(here("simulate", *arguments)).replace("│", " ").split())


def test_a_folder_without_a_journal_is_one_sentence(here: Here) -> None:
    assert sentence(here("simulate", "--from-journal", "nowhere")).startswith("There is no journal in nowhere:")


@pytest.mark.parametrize("master", ["nowhere.csv", "."])
def test_a_scrip_master_that_cannot_be_served_is_said_before(here: Here, journal_dir: Path, master: str) -> None:
    arguments = ("--from-journal", str(journal_dir), "--listen", "127.0.0.1:0", "--no-wait", "--once")
    result = here("simulate", *arguments, "--speed", "max", "--master", master)
    assert sentence(result).startswith(f"The scrip master {master} cannot be read: ")


def test_the_program_sends_a_recorded_day_once(journal_dir: Path, tmp_path: Path) -> None:
    master = tmp_path / "master.csv"
    master.write_text("SEM_EXM_EXCH_ID,\n")
    arguments = ["--from-journal", str(journal_dir), "--day", "2026-11-20", "--speed", "max", "--once", "--json"]
    arguments += ["--listen", "127.0.0.1:0", "--master", str(master), "--token-file", str(tmp_path / "token.json")]
    with running("simulate", *arguments, cwd=tmp_path) as process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        assert set(facts) == {"feed_url", "rest_url", "client_id", "pin", "totp_secret"}
        with urlopen(facts["rest_url"] + COMPACT_PATH) as answer:
            assert answer.read() == master.read_bytes()
        token = json.loads((tmp_path / "token.json").read_text())["access_token"]
        listed = [{"ExchangeSegment": "NSE_EQ", "SecurityId": str(number)} for number in (2, 3)]
        with connect(f"{facts['feed_url']}/?version=2&token={token}&clientId={CLIENT_ID}&authType=2") as websocket:
            websocket.send(json.dumps({"RequestCode": 21, "InstrumentCount": 2, "InstrumentList": listed}))
            received = list(websocket)
        assert received == [full(2, n) for n in range(1, 76, 2)]
        summary, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert json.loads(summary) == {"sent": {"full": 38}, "skipped": 0}
    assert said.splitlines()[:3] == [
        "The recording is from 2026-11-20 09:00:00 IST to 2026-11-20 11:05:00 IST.",
        "It begins when a client has subscribed.",
        "It has begun.",
    ]
    assert "The recording has ended: 76 packets in it, 38 sent to clients." in said
    assert "Nothing was recorded of 1 of the 2 instruments asked for: NSE_EQ 3." in said


def test_the_program_goes_on_listening_until_it_is_told_to_stop(journal_dir: Path, tmp_path: Path) -> None:
    arguments = ["--from-journal", str(journal_dir), "--speed", "max", "--no-wait", "--listen", "127.0.0.1:0", "--json"]
    with running("simulate", *arguments, cwd=tmp_path) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        with pytest.raises(HTTPError, match="404"):  # nobody knows what the recorded ids mean
            urlopen(json.loads(process.stdout.readline())["rest_url"] + COMPACT_PATH)
        while not (line := process.stderr.readline()).startswith("It goes on listening"):
            assert line
        process.send_signal(signal.SIGTERM)
        summary = process.communicate(timeout=20)[0]
    assert process.returncode == 0
    assert json.loads(summary) == {"sent": {}, "skipped": 0}


async def test_what_a_capture_receives_from_a_replay_is_what_was_recorded(tmp_path: Path) -> None:
    before, after = tmp_path / "journal", tmp_path / "again"
    sent = [full(1 + n % 150, n) for n in range(3000)]
    record(before, 0, [(NINE + n * SECOND_NS // 10, b"".join(sent[n : n + 3])) for n in range(0, 3000, 3)])
    save_token(tmp_path / "token.json", make_token(CLIENT_ID), CLIENT_ID)
    with closing(JournalWriter(after, 0)) as writer:
        receiver = Receiver(writer, Clock(), lambda block: None)
        journal = threading.Thread(target=receiver.run)
        journal.start()
        replay = DhanReplay(read_recording(before, 0, 1 << 61).messages, speed=None, settled_s=0.3)
        async with replay:
            settings = Settings(
                dhan_feed_url=replay.feed_url,
                dhan_token_file=tmp_path / "token.json",
                data_dir=tmp_path,
                sessions="always",
            )
            wanted = {generate_instrument_token("NSE_EQ", number): Mode.FULL for number in range(1, 151)}
            said: list[str] = []
            arrived: list[int] = []

            def receive(payload: bytes | str, connection: int, count: int) -> None:
                receiver.receive(payload, connection, count)
                arrived.append(count)

            task = asyncio.create_task(Feed(settings, wanted, receive, said.append).run())
            await until(lambda: sum(arrived) == 3000)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        receiver.close()
        await asyncio.to_thread(journal.join)
    assert said == []
    assert found(after) == sent
