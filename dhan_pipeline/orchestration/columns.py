"""The columns of assets, as the UI lists them: of tables and of files, each with its unit.

Belongs here: turning our own descriptions of columns into Dagster's. Does not: the descriptions. Those of tables are
the migrations' comments (`store/columns.py`), so that the database and the UI say the same.
"""

from collections.abc import Iterable

import dagster as dg
import pyarrow as pa

from dhan_pipeline.store.archive import archive_schema
from dhan_pipeline.store.columns import table_columns
from dhan_pipeline.ticks import COLUMNS


def ticks_schema() -> dg.TableSchema:
    """The columns of `ticks`."""
    return _schema((c.name, c.kind, c.meaning, c.unit, not c.required) for c in COLUMNS)


def table_schema(table: str) -> dg.TableSchema:
    """The columns of a table, whose comments name the units."""
    return _schema((c.name, c.kind, c.meaning, "", c.nullable) for c in table_columns(table))


def file_schema(*columns: tuple[str, str, str]) -> dg.TableSchema:
    """The columns of a file: name, type, meaning with unit. None lacks a value."""
    return _schema((*column, "", False) for column in columns)


def ticks_archive_schema() -> dg.TableSchema:
    """The columns of a file of `ticks_archive`."""
    return _schema(map(_of_field, archive_schema()))


_Described = tuple[str, str, str, str, bool]


def _of_field(field: pa.Field) -> _Described:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return field.name, str(kind), field.metadata[b"meaning"].decode(), field.metadata[b"unit"].decode(), field.nullable


def _schema(columns: Iterable[_Described]) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=name,
                type=kind,
                description=f"{meaning} ({unit})" if unit else meaning,
                constraints=dg.TableColumnConstraints(nullable=nullable),
            )
            for name, kind, meaning, unit, nullable in columns
        ]
    )
