-- What was subscribed in the hour of a check, and what the retention forgets, is found without a look at every row.

CREATE INDEX IF NOT EXISTS subscribed_instruments_until ON subscribed_instruments (until) WHERE until IS NOT NULL;
