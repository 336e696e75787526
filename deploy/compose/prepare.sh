#!/bin/sh
# Makes what docker-compose.yml needs of this site in deploy/compose/site: secrets, and rules to start from. What is
# there already stays as it is.
set -eu
cd "$(dirname "$0")"
mkdir -p site/secrets site/subscriptions
# The users in the containers have other numbers than the one out here, so they must be able to read the files; nobody
# else of this machine gets past the folder.
umask 022
chmod 700 site

password() { # NAME
    [ -s "site/secrets/$1" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"site/secrets/$1"
    cat "site/secrets/$1"
}

secret() { # NAME TEXT
    [ -s "site/secrets/$1" ] || printf '%b' "$2" >"site/secrets/$1"
}

postgres=$(password postgres_password)
secret database_url "postgresql://dhan:$postgres@timescaledb:5432/dhan"
secret dagster_pg_url "postgresql+psycopg2://dhan:$postgres@timescaledb:5432/dagster"
rabbitmq=$(password rabbitmq_password)
secret rabbitmq_user "default_user = dhan\ndefault_pass = $rabbitmq\n"
secret rabbitmq_url "amqp://dhan:$rabbitmq@rabbitmq:5672/%2F"
password grafana_admin_password >/dev/null
[ -e site/subscriptions/subscriptions.yaml ] || cp ../../subscriptions.example.yaml site/subscriptions/subscriptions.yaml
