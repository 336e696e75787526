"""Every command and every snippet in the documents is run. What cannot be is listed here, with the reason."""

from pathlib import Path

import pytest
from psycopg2.extensions import connection

from dhan_pipeline_tests.documents.snippets import (
    DOCUMENTS,
    Snippet,
    command_lines,
    mentions,
    name_of,
    parse,
    snippets,
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_line_has_a_command_and_options_that_there_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for words in command_lines(text):
        parse(words)
    for words in mentions(text):
        parse(words, mention=True)


@pytest.mark.parametrize("snippet", snippets("sql"), ids=str)
def test_every_query_runs(snippet: Snippet, conn: connection) -> None:
    with conn.cursor() as cursor:
        cursor.execute(snippet.text)
        assert cursor.description
