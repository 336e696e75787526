-- How the ticks of two brokers that were captured at once compare, an hour and instrument a row.

CREATE TABLE IF NOT EXISTS shadow_comparisons (
    hour                     timestamptz NOT NULL,
    dhan_token               bigint NOT NULL,
    kite_token               bigint NOT NULL,
    dhan_ticks               bigint NOT NULL,
    kite_ticks               bigint NOT NULL,
    dhan_seconds             integer NOT NULL,
    kite_seconds             integer NOT NULL,
    seconds                  integer NOT NULL,
    agreeing_seconds         integer NOT NULL,
    price_differs_seconds    integer NOT NULL,
    price_difference         double precision,
    price_differs_most_at    timestamptz,
    volume_differs_seconds   integer NOT NULL,
    volume_difference        double precision,
    dhan_volume              bigint,
    kite_volume              bigint,
    dhan_missing_seconds     integer NOT NULL,
    kite_missing_seconds     integer NOT NULL,
    shared_states            integer NOT NULL,
    lag_median_ms            double precision,
    lag_p99_ms               double precision,
    dhan_trade_delay_ms      double precision,
    kite_trade_delay_ms      double precision,
    PRIMARY KEY (hour, dhan_token)
);

COMMENT ON TABLE shadow_comparisons IS 'How both brokers'' ticks of an instrument compare, an hour at a time. Differences of under two seconds are delivery, and count as agreement';
COMMENT ON COLUMN shadow_comparisons.hour IS 'start of the IST hour of receipt';
COMMENT ON COLUMN shadow_comparisons.dhan_token IS 'the instrument as Dhan has it; see instruments';
COMMENT ON COLUMN shadow_comparisons.kite_token IS 'the same instrument as Kite has it; see instruments';
COMMENT ON COLUMN shadow_comparisons.dhan_ticks IS 'Dhan''s ticks of the hour';
COMMENT ON COLUMN shadow_comparisons.kite_ticks IS 'Kite''s ticks of the hour';
COMMENT ON COLUMN shadow_comparisons.dhan_seconds IS 'seconds of the hour in which Dhan sent at least one';
COMMENT ON COLUMN shadow_comparisons.kite_seconds IS 'seconds of the hour in which Kite sent at least one';
COMMENT ON COLUMN shadow_comparisons.seconds IS 'seconds that were compared: in session, from the first tick of either on';
COMMENT ON COLUMN shadow_comparisons.agreeing_seconds IS 'of them, those in which neither price nor volume differs, and neither broker misses anything';
COMMENT ON COLUMN shadow_comparisons.price_differs_seconds IS 'seconds in which the prices differ';
COMMENT ON COLUMN shadow_comparisons.price_difference IS 'the largest difference of prices, Dhan''s less Kite''s; NULL where they never differ (rupees)';
COMMENT ON COLUMN shadow_comparisons.price_differs_most_at IS 'the second of that difference; NULL where there is none';
COMMENT ON COLUMN shadow_comparisons.volume_differs_seconds IS 'seconds in which the cumulative volumes differ';
COMMENT ON COLUMN shadow_comparisons.volume_difference IS 'the largest difference of cumulative volumes, Dhan''s less Kite''s, as a share of the larger; 0 where they never differ, NULL where they were not compared';
COMMENT ON COLUMN shadow_comparisons.dhan_volume IS 'Dhan''s last cumulative volume of the hour; NULL where it carried none (units)';
COMMENT ON COLUMN shadow_comparisons.kite_volume IS 'Kite''s last cumulative volume of the hour; NULL where it carried none (units)';
COMMENT ON COLUMN shadow_comparisons.dhan_missing_seconds IS 'seconds in which Kite''s price or volume moved, and Dhan sent nothing, nor soon before or after';
COMMENT ON COLUMN shadow_comparisons.kite_missing_seconds IS 'seconds in which Dhan''s price or volume moved, and Kite sent nothing, nor soon before or after';
COMMENT ON COLUMN shadow_comparisons.shared_states IS 'cumulative volumes, or prices of an index, that both brokers showed: what the lag is measured on';
COMMENT ON COLUMN shadow_comparisons.lag_median_ms IS 'how much later Dhan showed them than Kite, the median; negative where Kite was later, NULL where nothing was shared (milliseconds)';
COMMENT ON COLUMN shadow_comparisons.lag_p99_ms IS '99 % of them came within so much of each other (milliseconds)';
COMMENT ON COLUMN shadow_comparisons.dhan_trade_delay_ms IS 'from the exchange''s time of a new trade, which is a whole second, to Dhan''s tick of it, the median (milliseconds)';
COMMENT ON COLUMN shadow_comparisons.kite_trade_delay_ms IS 'from the exchange''s time of a new trade, which is a whole second, to Kite''s tick of it, the median (milliseconds)';
