"""The documents say what is true: every column, every command, links that lead somewhere."""

import re
from pathlib import Path

import pytest
from psycopg2.extensions import connection
from typer.main import get_command

from dhan_pipeline import cli
from dhan_pipeline.cli.app import app
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token, split_instrument_token
from dhan_pipeline.ticks import COLUMNS
from dhan_pipeline_tests.documents.snippets import DOCUMENTS, REPOSITORY

TYPES = {
    "bool": "boolean",
    "int4": "integer",
    "int8": "bigint",
    "float8": "double precision",
    "text": "text",
    "timestamptz": "timestamptz",
    "int4[]": "integer[]",
    "int8[]": "bigint[]",
    "float8[]": "double precision[]",
}

#: All columns of a database, but for those of the partitions.
CATALOGUE = """
SELECT relname, attname, replace(format_type(atttypid, atttypmod), 'timestamp with time zone', 'timestamptz')
       || CASE WHEN attnotnull THEN ' not null' ELSE '' END
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition
      AND attnum > 0 AND NOT attisdropped
ORDER BY relname, attnum
"""


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def sections(document: str) -> dict[str, str]:
    """The text below each heading of the second level."""
    parts = re.split(r"^## (.+)\n", document, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(section: str) -> dict[str, list[str]]:
    """Cells of each table row whose first cell is code, by that cell."""
    found = re.findall(r"^\| `([^`]+)` \|(.*)\|$", section, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


def commands() -> set[str]:
    group = get_command(app)
    words = set()
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        words |= {f"{name} {inner}" for inner in getattr(command, "commands", {})} or {name}
    return words


def test_the_data_dictionary_describes_ticks_as_the_code_does() -> None:
    described = rows(sections(text(REPOSITORY / "docs" / "data-dictionary.md"))["ticks"])
    assert [(name, *cells[:3]) for name, cells in described.items()] == [
        (c.name, TYPES[c.kind] + (" not null" if c.required else ""), c.unit, c.meaning) for c in COLUMNS
    ]


def test_the_data_dictionary_lists_every_column_of_every_table_and_view(conn: connection) -> None:
    described = sections(text(REPOSITORY / "docs" / "data-dictionary.md"))
    with conn.cursor() as cursor:
        cursor.execute(CATALOGUE)
        catalogue: dict[str, dict[str, str]] = {}
        for relation, column, kind in cursor.fetchall():
            catalogue.setdefault(relation, {})[column] = kind.replace(",", ", ")
    assert described.keys() == catalogue.keys()
    for view, table in (("ticks_with_symbols", "ticks"), ("active_instruments", "instruments")):
        for column in catalogue[table]:
            assert column in catalogue[view]
            del catalogue[view][column]
    # Columns of a view are never NULL where those below it are not; PostgreSQL does not say so.
    described["ticks"] = described["ticks"].replace(" not null", "")
    for relation, columns in catalogue.items():
        assert {name: cells[0] for name, cells in rows(described[relation]).items()} == columns


def test_the_readme_lists_every_command_and_no_other() -> None:
    listed = sections(text(REPOSITORY / "README.md"))["Commands"]
    first_cells = re.findall(r"^\| (`.+?) \|", listed, re.MULTILINE)
    assert {word for cell in first_cells for word in re.findall(r"`([^`]+)`", cell)} == commands()


def test_the_page_on_commands_lists_every_exit_code() -> None:
    table = text(REPOSITORY / "docs" / "commands.md")
    named, _, _ = (cli.__doc__ or "").partition("Exit codes: ")[2].partition(". ")
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == re.findall(r"\d+", named)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_and_every_picture_of_the_documents_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\[[^]]+\]\(([^)]+)\)", text(path)):
        if "://" not in target:
            file, _, heading = target.partition("#")
            linked = path.parent / file if file else path
            assert linked.exists(), target
            if heading:
                headings = re.findall(r"^#+ (.+)$", text(linked), re.MULTILINE)
                assert heading in [re.sub(r"[^a-z0-9_ -]", "", h.lower()).replace(" ", "-") for h in headings]


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", text(REPOSITORY / "Makefile"), re.MULTILINE))
    named = {word for path in DOCUMENTS for word in re.findall(r"`?make ([a-z]+)(?:`| ARGS|$|  )", text(path))}
    assert named
    assert named <= targets


def test_the_token_in_the_concepts_is_right() -> None:
    assert generate_instrument_token("NSE_EQ", 2885) == 1103806597957
    assert split_instrument_token(1103806597957) == (ExchangeSegment.NSE_EQ, 2885)
    assert text(REPOSITORY / "docs" / "concepts.md").count("1103806597957") == 2
