-- All times are integers, Unix ms.

-- +goose Up

CREATE TABLE counters (
    key        TEXT    NOT NULL PRIMARY KEY,
    count      INTEGER NOT NULL,
    likes      INTEGER NOT NULL DEFAULT 0,
    updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE history (
    key    TEXT    NOT NULL,
    bucket INTEGER NOT NULL,
    delta  INTEGER NOT NULL,
    PRIMARY KEY (key, bucket)
) STRICT, WITHOUT ROWID;

-- id is a byte for the kind of id (7: UUIDv7, 0: any other), then the id.
CREATE TABLE request_ids (
    id          BLOB    NOT NULL PRIMARY KEY,
    fingerprint INTEGER NOT NULL,
    at          INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX request_ids_at ON request_ids (at);

CREATE TABLE once_claims (
    key     TEXT    NOT NULL,
    actor   TEXT    NOT NULL,
    period  INTEGER NOT NULL,
    start   INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    PRIMARY KEY (key, actor, period, start)
) STRICT, WITHOUT ROWID;
CREATE INDEX once_claims_expires ON once_claims (expires);

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Stable: one row a counter. count is the sum of all increments and likes, likes the part that comes from
-- likes.
CREATE VIEW counter_totals AS
SELECT key, count, likes, strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1000.0, 'unixepoch') AS updated_at
FROM counters;

-- Stable: the net change in each hour (or minute, as the server is set) with a change; bucket is its start.
CREATE VIEW counter_history AS
SELECT key, strftime('%Y-%m-%dT%H:%M:%SZ', bucket / 1000, 'unixepoch') AS bucket, delta
FROM history;

-- +goose Down
DROP VIEW counter_history;
DROP VIEW counter_totals;
DROP TABLE settings;
DROP TABLE once_claims;
DROP TABLE request_ids;
DROP TABLE history;
DROP TABLE counters;
