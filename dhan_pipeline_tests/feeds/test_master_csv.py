import gzip
import http.server
import json
import random
import threading
import traceback
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dhan_pipeline.feeds.dhan import scrip_master
from dhan_pipeline.feeds.kite import instruments_dump
from dhan_pipeline.feeds.master_csv import InstrumentMasterError, download
from dhan_pipeline.feeds.masters import download_master
from dhan_pipeline.settings import Settings


class _Server(http.server.ThreadingHTTPServer):
    body = b""
    status = 200
    declared: int | None = None
    encoding: str | None = None
    asked: dict[str, str]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.asked = dict(self.headers)
        self.send_response(self.server.status)
        if self.server.encoding:
            self.send_header("Content-Encoding", self.server.encoding)
        self.send_header("Content-Length", str(self.server.declared or len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def url(server: _Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/master.csv"


def test_a_download_tells_its_progress_and_replaces_the_file(server: _Server, tmp_path: Path) -> None:
    server.body = b"ID,NAME\n2885,RELIANCE\n" * 5000
    destination = tmp_path / "folder" / "master.csv"
    told: list[tuple[int, int | None]] = []
    assert download("list", url(server), destination, "ID", lambda *p: told.append(p)) == destination
    assert destination.read_bytes() == server.body
    assert told[-1] == (len(server.body), len(server.body))
    assert sorted(told) == told
    assert list(destination.parent.iterdir()) == [destination]


@pytest.mark.parametrize(
    ("status", "body", "declared", "sentence"),
    [
        (503, b"busy", None, "the server answered 503"),
        (200, b"", None, "is empty"),
        (200, b"  <!DOCTYPE html><html>", None, "is a web page"),
        (200, b'{"status": "failure"}', None, "no list: its first line names no ID column"),
        (200, b"ID,NAME\n2885,RELIANCE", 10_000, "could not be downloaded"),
    ],
)
def test_a_broken_download_is_refused_and_leaves_the_old_file(
    server: _Server, tmp_path: Path, status: int, body: bytes, declared: int | None, sentence: str
) -> None:
    server.status, server.body, server.declared = status, body, declared
    destination = tmp_path / "master.csv"
    destination.write_text("old")
    with pytest.raises(InstrumentMasterError, match=sentence):
        download("list", url(server), destination, "ID")
    assert destination.read_text() == "old"
    assert list(tmp_path.iterdir()) == [destination]


def test_a_server_that_is_not_there_and_an_address_that_is_none_are_refused_in_one_sentence(tmp_path: Path) -> None:
    for address in ("http://127.0.0.1:9/master.csv", "not an address", "http://.com/", "http://127.0.0.1/\ud800"):
        with pytest.raises(InstrumentMasterError, match="could not be downloaded"):
            download("list", address, tmp_path / "master.csv", "ID")


@pytest.mark.parametrize("token", ["abcd\nefghSECRET", "abcd\u2026efghSECRET"])
def test_a_token_that_cannot_be_sent_is_refused_in_a_sentence_without_it(
    server: _Server, tmp_path: Path, token: str
) -> None:
    token_file = tmp_path / "token.json"
    token_file.write_text(json.dumps({"api_key": "key", "access_token": token}))
    address = f"http://127.0.0.1:{server.server_address[1]}"
    settings = Settings(data_source="kite", data_dir=tmp_path, kite_token_file=token_file, kite_api_url=address)
    with pytest.raises(InstrumentMasterError) as caught:
        download_master(settings)
    assert str(caught.value) == (
        f"The instruments dump could not be downloaded from {address}/instruments:"
        " the access token has characters that none has."
    )
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_a_compressed_answer_becomes_a_plain_file(server: _Server, tmp_path: Path) -> None:
    content = b"ID,NAME\n" * 1000
    server.body, server.encoding = gzip.compress(content, mtime=0), "gzip"
    told: list[tuple[int, int | None]] = []
    path = download("list", url(server), tmp_path / "list.csv", "ID", lambda *p: told.append(p))
    assert path.read_bytes() == content
    assert told[-1] == (len(server.body), len(server.body))


_COMPRESSED = gzip.compress(b"ID,NAME\n" + random.Random(0).randbytes(100_000), mtime=0)


@pytest.mark.parametrize(
    ("body", "encoding", "sentence"),
    [
        *((_COMPRESSED[:size], "gzip", "the compressed answer ends early") for size in (0, 5_000, -9, -1)),
        (_COMPRESSED + gzip.compress(b"2885,RELIANCE"), "gzip", "the compressed answer goes on after its end"),
        (_COMPRESSED[:-8] + bytes(8), "gzip", "incorrect data check"),
        (b"ID,NAME\n", "gzip", "incorrect header check"),
        (zlib.compress(b"ID,NAME\n"), "deflate", "encoded as deflate, which was not asked for"),
    ],
)
def test_a_compressed_answer_that_is_not_whole_is_refused_and_leaves_the_old_file(
    server: _Server, tmp_path: Path, body: bytes, encoding: str, sentence: str
) -> None:
    server.body, server.encoding = body, encoding
    destination = tmp_path / "master.csv"
    destination.write_text("old")
    with pytest.raises(InstrumentMasterError, match=f"could not be downloaded from .*{sentence}"):
        download("list", url(server), destination, "ID")
    assert destination.read_text() == "old"
    assert server.asked["Accept-Encoding"] == "gzip"


def test_each_brokers_list_is_known_by_a_column_of_its_own(server: _Server, tmp_path: Path) -> None:
    server.body = b"instrument_token,exchange_token,tradingsymbol\n"
    headers = {"Authorization": "token key:secret"}
    instruments_dump.download_instruments_csv(url(server), tmp_path / "kite.csv", headers=headers)
    assert (server.asked["X-Kite-Version"], server.asked["Authorization"]) == ("3", "token key:secret")
    with pytest.raises(InstrumentMasterError, match="no scrip master: its first line names no SECURITY_ID column"):
        scrip_master.download_instruments_csv(url(server), tmp_path / "dhan.csv")
    server.body = b"SEM_SMST_SECURITY_ID\n"
    scrip_master.download_instruments_csv(url(server), tmp_path / "dhan.csv")
    with pytest.raises(InstrumentMasterError, match="is no instruments dump"):
        instruments_dump.download_instruments_csv(url(server), tmp_path / "kite.csv")
