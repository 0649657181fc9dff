#!/bin/sh
# Run by the postgres image when its data folder is empty: a role and a database each for Prefect and segcurate.
set -eu

psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres \
  --set=prefect="$PREFECT_DB_PASSWORD" --set=segcurate="$SEGCURATE_DB_PASSWORD" <<'SQL'
CREATE ROLE prefect LOGIN PASSWORD :'prefect';
CREATE ROLE segcurate LOGIN PASSWORD :'segcurate';
CREATE DATABASE prefect OWNER prefect;
CREATE DATABASE segcurate OWNER segcurate;
REVOKE CONNECT ON DATABASE prefect FROM PUBLIC;
REVOKE CONNECT ON DATABASE segcurate FROM PUBLIC;
SQL
