-- What each tick adds to the day's volume and to the open interest: differences to the tick before it, of one instrument, in
-- order of receipt. Made when asked for, over whole days, because whoever has only some of the ticks (a worker, an hour)
-- would get others.

CREATE OR REPLACE FUNCTION tick_deltas(day date, instrument bigint DEFAULT NULL)
    RETURNS TABLE (
        tick_id bigint,
        "time" timestamptz,
        instrument_token bigint,
        volume_traded bigint,
        volume_delta bigint,
        oi bigint,
        oi_delta bigint
    )
    LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT
        r.tick_id,
        r."time",
        r.instrument_token,
        r.volume_traded,
        -- Not to a tick without a volume, nor to what is left of an earlier day.
        r.volume_traded - lag(r.volume_traded) OVER (
            PARTITION BY r.instrument_token, r.volume_traded IS NULL,
                (coalesce(r.last_trade_time, r."time") AT TIME ZONE 'Asia/Kolkata')::date
            ORDER BY r."time", r.tick_id
        ),
        r.oi,
        r.oi - lag(r.oi) OVER (PARTITION BY r.instrument_token, r.oi IS NULL ORDER BY r."time", r.tick_id)
    FROM tick_rows r
    WHERE r."time" >= day::timestamp AT TIME ZONE 'Asia/Kolkata'
      AND r."time" < (day + 1)::timestamp AT TIME ZONE 'Asia/Kolkata'
      AND (instrument IS NULL OR r.instrument_token = instrument)
$$;

COMMENT ON FUNCTION tick_deltas(date, bigint) IS 'Ticks received on a day (IST), of all instruments or of one, each with what volume_traded and oi differ by from the tick before it; NULL for the first of the day';
