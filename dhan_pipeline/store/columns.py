"""What the columns of a table are, in the words of the migrations: for whoever has no database to ask."""

import re
from dataclasses import dataclass

from dhan_pipeline.store.migrate import migration_files

_TABLE = re.compile(r"^CREATE TABLE (?:IF NOT EXISTS )?(\w+) \(\n(.*?)^\)", re.MULTILINE | re.DOTALL)
_COLUMN = re.compile(r'^ {4}"?([a-z]\w*)"? +([a-z][a-z ]*(?:\([\d, ]+\))?)(.*?),?$', re.MULTILINE)
_COMMENT = re.compile(r"""^COMMENT ON COLUMN (\w+)\."?(\w+)"? IS '((?:[^']|'')*)';""", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column: its name, PostgreSQL's type, whether it may be NULL, and what it means, with its unit if it has one."""

    name: str
    kind: str
    nullable: bool
    meaning: str


def table_columns(table: str) -> list[TableColumn]:
    """The columns of a table that a migration creates, in order, as the latest comments describe them."""
    sql = "\n".join(file.read_text(encoding="utf-8") for file in migration_files())
    body = dict(_TABLE.findall(sql))[table]
    meanings = {column: text.replace("''", "'") for of, column, text in _COMMENT.findall(sql) if of == table}
    return [
        TableColumn(name, kind.strip(), not re.search("NOT NULL|PRIMARY KEY", rest), meanings[name])
        for name, kind, rest in _COLUMN.findall(body)
    ]
