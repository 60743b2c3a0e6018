-- +goose Up

-- The bucket of history that a counter's last change with a history went to, and its delta; NULL and 0 if there was none
-- yet. It goes to history when the next change has another bucket, and a bucket that comes back is taken from there: a
-- bucket of a key is in one of the two. count is before_history, the history and bucket_delta together.
ALTER TABLE counters ADD COLUMN bucket INTEGER;
ALTER TABLE counters ADD COLUMN bucket_delta INTEGER NOT NULL DEFAULT 0;

-- Stable: the net change in each hour (or minute, as the server is set) with a change; bucket is its start.
DROP VIEW counter_history;
CREATE VIEW counter_history AS
SELECT key, strftime('%Y-%m-%dT%H:%M:%SZ', bucket / 1000, 'unixepoch') AS bucket, delta FROM history
UNION ALL
SELECT key, strftime('%Y-%m-%dT%H:%M:%SZ', bucket / 1000, 'unixepoch'), bucket_delta FROM counters WHERE bucket IS NOT NULL;

-- +goose Down
DROP VIEW counter_history;
INSERT INTO history (key, bucket, delta) SELECT key, bucket, bucket_delta FROM counters WHERE bucket IS NOT NULL;
ALTER TABLE counters DROP COLUMN bucket_delta;
ALTER TABLE counters DROP COLUMN bucket;
CREATE VIEW counter_history AS
SELECT key, strftime('%Y-%m-%dT%H:%M:%SZ', bucket / 1000, 'unixepoch') AS bucket, delta
FROM history;
