"""All SQL that only TimescaleDB knows runs on TimescaleDB, in WebAssembly: what is checked without a server of it."""

import json
import os
import shutil
import subprocess
from datetime import date
from pathlib import Path

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.sessions import HOUR_NS, day_bounds_ns, parse_hour_key
from dhan_pipeline.store import timescale
from dhan_pipeline.store.migrate import migration_files
from dhan_pipeline.store.partitions import instant, partition_name
from dhan_pipeline_tests.store import existing_system

# Packages are fetched, and a server is compiled.
pytestmark = pytest.mark.timeout(400)

HERE = Path(__file__).parent
NINE = parse_hour_key("2026-11-20T09:00")
DAY = [instant(at_ns) for at_ns in day_bounds_ns(date(2026, 11, 20))]


def test_all_sql_for_timescaledb_runs(tmp_path: Path, conn: connection) -> None:
    if shutil.which("npm") is None:
        assert not os.environ.get("CI"), "node and npm are needed"
        pytest.skip("node and npm are needed")
    bounds = {"start": instant(NINE).isoformat(), "end": instant(NINE + HOUR_NS).isoformat()}
    with conn, conn.cursor() as cursor:
        statements = {
            "CHUNKS": timescale.CHUNKS,
            "SIZES": timescale.SIZES,
            "JOBS": timescale.JOBS,
            "UNPACK_WITHOUT_LIMIT": timescale.UNPACK_WITHOUT_LIMIT,
            "ATTACH_CHUNK": cursor.mogrify(timescale.ATTACH_CHUNK, {"table": partition_name(NINE), **bounds}).decode(),
            "DROP_CHUNKS": cursor.mogrify(timescale.DROP_CHUNKS, {"start": DAY[0], "end": DAY[1]}).decode(),
            "RUN_JOB": cursor.mogrify(timescale.RUN_JOB, (4711,)).decode(),
        }
    task = tmp_path / "task.json"
    migrations = migration_files()
    existing = {
        "tables": existing_system.TABLES,
        "instruments": existing_system.INSTRUMENTS,
        "ticks": existing_system.TICKS,
        "queries": existing_system.QUERIES,
        "insert": existing_system.INSERT_TICK,
        "remove": str(migrations[0].with_name("remove_dhan_data.sql")),
        "back": str(migrations[0].with_name("return_to_existing.sql")),
    }
    task.write_text(
        json.dumps({"migrations": [str(file) for file in migrations], "statements": statements, "existing": existing})
    )
    for name in ("package.json", "package-lock.json", "check.mjs"):
        shutil.copy(HERE / name, tmp_path)
    for command in (["npm", "ci", "--no-audit", "--no-fund", "--prefer-offline"], ["node", "check.mjs", str(task)]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "All of our SQL runs on TimescaleDB." in done.stdout
