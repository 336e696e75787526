-- Dagster's own database, made with the server's data; `dagster instance migrate` fills it. It needs no TimescaleDB, which
-- the image puts into the template that is taken otherwise.
CREATE DATABASE dagster TEMPLATE template0;
