#!/bin/sh
# What a container of the image does first. Dagster takes its database's address from the environment only; the secret
# is a file.
set -eu
if [ -z "${DAGSTER_PG_URL:-}" ] && [ -r /run/secrets/dagster_pg_url ]; then
    DAGSTER_PG_URL=$(cat /run/secrets/dagster_pg_url)
    export DAGSTER_PG_URL
fi
exec "$@"
