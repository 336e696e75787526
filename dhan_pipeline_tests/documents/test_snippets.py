"""Every command and every snippet in the documents is run. What cannot be is listed here, with the reason."""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
import yaml
from psycopg2.extensions import connection

from dhan_pipeline.alerts import rules as alerts
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.feeds.simulator.rest import DETAILED_PATH
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, make_token
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import embedded
from dhan_pipeline.store.engine import connect, create_database
from dhan_pipeline.subscriptions import load_rules
from dhan_pipeline.transport.message import encode
from dhan_pipeline_tests.documents.captured_day import capture_day
from dhan_pipeline_tests.documents.shell import Lasting, Shell, copy_database, make_checkout, postgres_programs
from dhan_pipeline_tests.documents.snippets import (
    DOCUMENTS,
    Snippet,
    command_lines,
    mentions,
    name_of,
    parse,
    shell_lines,
    snippets,
)
from dhan_pipeline_tests.program import environment, running
from dhan_pipeline_tests.store import existing_system
from dhan_pipeline_tests.transport.test_message import SMALL

# A command takes a second; many, on a busy machine, take minutes.
pytestmark = pytest.mark.timeout(600)

#: Lines for a shell that are not run here, by what they contain, and why. What they give to `dhan-pipeline` is parsed.
NOT_RUN = {
    "docker ": "needs a Docker engine; deploy/test_compose.py reads the files, and `make compose-smoke` runs them",
    "$EDITOR ": "waits for a person",
    "git pull": "needs the repository that the checkout was cloned from",
    "make setup": "is what has made the environment of these tests",
    "make demo": "demo/test_run.py does it",
    "make test": "is this",
    "make bench": "takes a quarter of an hour",
    "make soak": "takes minutes; .ci/run does it",
    "make compose-smoke": "needs a Docker engine",
    "bin/pytest -n 0": "is this, against a server of somebody's own",
    "bin/pytest -q": "is a part of this",
    "bin/ruff ": "is a part of `make test`",
    "bin/mypy": "is a part of `make test`",
    "token generate --source dhan": "ends the token of all other documents; test_cli.py does it",
    "token generate --source kite": "needs a person who logs in; feeds/kite/test_token.py does what follows",
    "dhan-pipeline up": "starts Dagster, which takes half a minute; local/test_up.py does it",
    "| jq": "needs jq; cli/test_watch.py reads what it would",
    "alert test": "tells somebody; cli/test_alert.py does it, with servers of its own",
    "redrive --list": "needs RabbitMQ; cli/test_worker.py does it",
    "redrive --dead-letters": "needs RabbitMQ; cli/test_worker.py does it",
    "whole.dump": "needs TimescaleDB; the commands for other databases beside it are run",
    '"$NEW_DATABASE_URL"': "needs TimescaleDB; the commands for other databases beside it are run",
    "db to-timescaledb": "needs TimescaleDB; store/test_to_timescaledb.py does it",
    "promtool ": "needs Prometheus; deploy/test_prometheus.py does it",
    "--source dhan,kite": "is what feeds/simulator/test_exchanges.py does",
}

#: What may exit with 1, because what it says of these tests' surroundings is true.
MAY_FAIL = ("dhan-pipeline doctor", "dhan-pipeline why")

#: What runs until it is asked to stop, and what it says when it works.
LASTING = (
    Lasting("dhan-pipeline ingest", r"[1-9][\d,]* ticks stored"),
    Lasting("dhan-pipeline simulate", r"rest_url", stays=True),
    Lasting("dhan-pipeline live", r"http://127"),
    Lasting("dhan-pipeline watch", r"\d"),
)

#: What a person has and these tests have not, and what is there instead.
REPLACED = {
    '"eyJ…"': f'"{make_token(CLIENT_ID)}"',
    "'my_view'": "'ticks_with_symbols'",
    "dhan-pipeline live": "dhan-pipeline live --port 0",
    "\"$(TZ=Asia/Kolkata date -d '1 hour ago' +%FT%H:00)\"": "2026-11-20T10:00",
    "simulate --listen": "simulate --master exchange.csv --listen",
    "simulate --instruments": "simulate --master exchange.csv --instruments",
}

#: Queries that need TimescaleDB; `dhan_pipeline_tests/timescale` has SQL of these views.
NEEDS_TIMESCALEDB = "timescaledb_information"

#: Examples that another test runs.
PYTHON_ELSEWHERE = {"imported-names.md": "test_imported_names.py, with an exchange"}

#: Documents that begin with nothing: no tables, no journal.
FRESH = {"tutorial.md", "practise.md"}

#: Documents that begin with a database of the existing system.
EXISTING = {"migration.md"}

#: Documents about the embedded PostgreSQL: no other one is set.
EMBEDDED = {"disaster-recovery.md"}


@dataclass(frozen=True)
class Place:
    """A captured day, and an exchange that is open."""

    folder: Path
    database_url: str
    server_url: str
    exchange: dict[str, str]
    """Settings that lead to the exchange."""


@pytest.fixture(scope="module")
def place(open_dir: Path, postgres_url: str, template: str) -> Iterator[Place]:
    folder = open_dir / "documents"
    (folder / "data").mkdir(parents=True)
    url = create_database(postgres_url, "captured_day", template=template)
    capture_day(folder / "data", url)
    write_synthetic_master(folder / "exchange.csv", 8_000, on=datetime.now(IST).date())
    options = ("--master", "exchange.csv", "--instruments", "500", "--rate", "500")
    with running("simulate", "--listen", "127.0.0.1:0", "--rest", "127.0.0.1:0", *options, cwd=folder) as exchange:
        assert exchange.stdout is not None
        urls = dict(exchange.stdout.readline().strip().split(": ") for _ in range(2))
        yield Place(
            folder,
            create_database(postgres_url, "documents", template="captured_day"),
            postgres_url,
            {
                "dhan_feed_url": urls["feed_url"],
                "dhan_api_url": urls["rest_url"],
                "dhan_auth_url": urls["rest_url"],
                "dhan_scrip_master_url": f"{urls['rest_url']}{DETAILED_PATH}",
                "sessions": "always",
            },
        )


@pytest.fixture(scope="module")
def captured(place: Place) -> Iterator[connection]:
    with closing(connect(place.database_url)) as opened:
        yield opened


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_line_has_a_command_and_options_that_there_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for words in command_lines(text):
        parse(words)
    for words in mentions(text):
        parse(words, mention=True)


@pytest.mark.parametrize("snippet", [s for s in snippets("sql") if s.document not in EXISTING], ids=str)
def test_every_query_runs(snippet: Snippet, captured: connection) -> None:
    _query(captured, snippet.text)


def _query(conn: connection, text: str) -> None:
    for statement in re.split(r";\n", text):
        if statement.strip() and NEEDS_TIMESCALEDB not in statement:
            with conn, conn.cursor() as cursor:
                cursor.execute(statement)
                assert cursor.description


def _by_document(*languages: str) -> dict[str, list[Snippet]]:
    found: dict[str, list[Snippet]] = defaultdict(list)
    for snippet in snippets(*languages):
        found[snippet.document].append(snippet)
    return found


@pytest.mark.parametrize("document", sorted(_by_document("python").keys() - PYTHON_ELSEWHERE))
def test_every_example_in_python_runs(
    document: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data", "docs", "dhan_pipeline"):
        source = place.folder / name if name == "data" else Path(__file__).parent.parent.parent / name
        (tmp_path / name).symlink_to(source)
    (tmp_path / "journal").symlink_to(place.folder / "data" / "journal")
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DATA_SOURCE", "dhan")
    monkeypatch.setenv("DATABASE_URL", place.database_url)
    names: dict[str, Any] = {"__name__": "__main__", "body": encode(SMALL)}
    with mpl.rc_context({"backend": "agg"}):
        for snippet in _by_document("python")[document]:
            exec(compile(snippet.text, str(snippet), "exec"), names)
    frames = [value for value in names.values() if isinstance(value, pd.DataFrame)]
    assert all(len(frame) for frame in frames) or document == "README.md"  # which asks for the last hours


@pytest.mark.parametrize("document", sorted(_by_document("sh")))
def test_every_command_runs(document: str, place: Place, open_dir: Path, tmp_path: Path) -> None:
    folder = open_dir / document.replace("/", "-").removesuffix(".md")
    folder.mkdir()
    make_checkout(folder)
    (folder / "exchange.csv").symlink_to(place.folder / "exchange.csv")
    variables = environment(dhan_token_file="data/dhan_token.json", **place.exchange)
    (folder / "dagster" / "storage").mkdir(parents=True)
    variables["DAGSTER_HOME"] = str(folder / "dagster")
    variables["PATH"] = f"{postgres_programs()}:{variables['PATH']}"
    with ExitStack() as ends:
        if document not in FRESH:
            shutil.copy(folder / "subscriptions.example.yaml", folder / "subscriptions.yaml")
            (folder / "data").mkdir()
            data = folder / "data" / ("demo" if document == "README.md" else "")
            shutil.copytree(place.folder / "data", data, dirs_exist_ok=True)
            variables["DHAN_TOKEN_FILE"] = str(data / "dhan_token.json")
        if document in EMBEDDED:
            server = embedded.start(folder / "data")
            ends.callback(embedded.stop, folder / "data")
            copy_database(place.database_url, server.url)
        else:
            made = create_database(
                place.server_url, f"of {folder.name}", None if document in FRESH | EXISTING else "captured_day"
            )
            variables["DATABASE_URL"] = made
            if document in EXISTING:
                with closing(connect(made)) as conn:
                    existing_system.build(conn)
        replaced = REPLACED | {"postgresql://…": variables.get("DATABASE_URL", "")}
        shell = ends.enter_context(Shell(folder, variables, LASTING, replaced))
        for snippet in _by_document("sh", "ini", "yaml", "sql")[document]:
            if snippet.language == "ini":
                (folder / ".env").write_text(shell.text(snippet.text), encoding="utf-8")
            elif snippet.language == "yaml" and "rules:" in snippet.text:
                (folder / "subscriptions.yaml").write_text(snippet.text, encoding="utf-8")
            elif snippet.language == "sql" and document in EXISTING:
                with closing(connect(variables["DATABASE_URL"])) as conn:
                    _query(conn, shell.text(snippet.text))
            elif snippet.language == "sh":
                shell.run("".join(_allowed(line) for line in shell_lines(snippet.text) if not _reason(line)))


def _allowed(line: str) -> str:
    """The line, which may exit with 1 where that is right."""
    return f"{line.rstrip()} || [ $? = 1 ]\n" if any(command in line for command in MAY_FAIL) else line


def _reason(line: str) -> str | None:
    """Why a line is not run here."""
    return next((reason for contained, reason in NOT_RUN.items() if contained in line), None)


def test_every_reason_not_to_run_something_is_needed() -> None:
    lines = [line for snippet in snippets("sh") for line in shell_lines(snippet.text)]
    assert [contained for contained in NOT_RUN if not any(contained in line for line in lines)] == []


@pytest.mark.parametrize("snippet", snippets("yaml", "json", "ini"), ids=str)
def test_every_file_that_is_shown_can_be_read(snippet: Snippet, tmp_path: Path) -> None:
    if snippet.language == "json":
        rest = snippet.text.strip()
        while rest:  # one object, or several
            shown, end = json.JSONDecoder().raw_decode(rest)
            assert isinstance(shown, dict)
            rest = rest[end:].lstrip()
    elif snippet.language == "ini":
        (tmp_path / ".env").write_text(snippet.text, encoding="utf-8")
        named = re.findall(r"^(\w+)=", snippet.text, re.MULTILINE)
        assert {name.lower() for name in named} <= set(Settings.model_fields)
        Settings(_env_file=tmp_path / ".env")  # type: ignore[call-arg]
    elif "rules:" in snippet.text:
        (tmp_path / "rules.yaml").write_text(snippet.text, encoding="utf-8")
        (tmp_path / "watchlist.csv").write_text("exchange_segment,security_id\nNSE_EQ,2885\n", encoding="utf-8")
        assert load_rules(tmp_path / "rules.yaml")
    elif "routes:" in snippet.text:
        (tmp_path / "alerts.yaml").write_text(snippet.text, encoding="utf-8")
        assert alerts.load_rules(tmp_path / "alerts.yaml")
    else:
        assert yaml.safe_load(snippet.text)


def test_every_block_says_its_language() -> None:
    known = {"sh", "sql", "python", "json", "yaml", "ini", "text", ""}
    assert {snippet.language for snippet in snippets(*known)} <= known
