"""Compares the journal with the database inside the stack, and prints what it found as a JSON object.

    docker compose exec -T pipeline python - < deploy/compose/conservation.py

While the capture runs, the journal is always some blocks ahead: stop it first, or compare the database's books with its
rows alone (python - --books). Nothing is changed.
"""

import json
import sys
from contextlib import closing

from dhan_pipeline.clock import Clock
from dhan_pipeline.ingest.rebuild import rebuild_hours
from dhan_pipeline.journal.reader import captures, hours, read_blocks
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect, database_url

#: Consistent in one statement, also under load: each transaction commits rows and books together.
BOOKS = """
WITH books AS (SELECT sum(packets) AS packets, sum(ticks) AS ticks, sum(state + control) AS others,
                      sum(rejected) AS rejected, extract(epoch FROM now() - max(last_received)) AS behind_s
               FROM ingest_ledger),
     whole AS (SELECT block_id, sum(messages) AS messages FROM ingest_ledger GROUP BY block_id
               HAVING count(*) = min(parts)),
     stored AS (SELECT count(*) AS rows, count(DISTINCT tick_id) AS distinct_ids FROM ticks)
SELECT books.*, stored.*, (SELECT count(*) FROM whole) AS blocks, (SELECT sum(messages) FROM whole) AS messages,
       (SELECT count(*) FROM rejected_packets) AS rejected_kept, (SELECT count(*) FROM feed_gaps) AS gaps
FROM books, stored
"""


def main() -> None:
    """Print the numbers, and under `problems` what does not fit."""
    settings = Settings()
    url = database_url(settings)
    with closing(connect(url)) as conn, conn.cursor() as cursor:
        cursor.execute(BOOKS)
        names = [column.name for column in cursor.description or ()]
        found = dict(zip(names, (float(value or 0) for value in cursor.fetchone() or ()), strict=True))
        cursor.execute("SELECT block_id FROM ingest_ledger GROUP BY block_id HAVING count(*) = min(parts)")
        whole = {block_id for (block_id,) in cursor}
    problems: list[str] = []
    if "--books" not in sys.argv:
        facts, problems = compare(settings, url, whole)
        found |= facts
    if found["packets"] != found["ticks"] + found["others"] + found["rejected"]:
        problems.append("The ledger has packets that are neither ticks, state, control nor rejected.")
    if not found["ticks"] == found["rows"] == found["distinct_ids"]:
        problems.append("The ledger's ticks are not the rows of the table, each once.")
    if found["rejected"] != found["rejected_kept"]:
        problems.append("The ledger's rejected packets are not those that are kept.")
    counts = {name: round(value, 1) if name == "behind_s" else int(value) for name, value in found.items()}
    print(json.dumps({**counts, "problems": problems}))


def compare(settings: Settings, url: str, whole: set[int]) -> tuple[dict[str, int], list[str]]:
    """What the journal holds, and where the database has something else. `whole`: blocks that are stored."""
    numbers = captures(settings.journal_dir)
    journaled = {block.block_id for number in numbers for block in read_blocks(settings.journal_dir, number)}
    facts = {"journal_blocks": len(journaled), "missing_blocks": len(journaled - whole)}
    if journaled != whole:
        return facts, [
            f"{len(journaled - whole)} blocks are in the journal alone, {len(whole - journaled)} stored alone."
        ]
    held = sorted({hour for number in numbers for hour in hours(settings.journal_dir, number)})
    # For an hour that is open a rebuild is refused: this clock is ahead.
    ahead = Clock(Clock().now_ns() + HOUR_NS)
    rebuilt = list(rebuild_hours(settings, url, held[0], held[-1], ahead, compare_only=True)) if held else []
    different = [hour.hour for hour in rebuilt if not hour.same]
    problems = [f"The table differs from what the journal says of {', '.join(different)}."] if different else []
    return {**facts, "journal_rows": sum(hour.rows for hour in rebuilt)}, problems


main()
