-- Dagster's own database, made with the server's data; `dagster instance migrate` fills it.
CREATE DATABASE dagster;
