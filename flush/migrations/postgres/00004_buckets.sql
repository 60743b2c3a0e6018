-- +goose Up

-- A change writes one row: its bucket is in the row of its counter, and goes into history when a change of another bucket comes.
-- No index, as a change touches all of these.
ALTER TABLE counters
    ADD COLUMN bucket          timestamptz,
    ADD COLUMN bucket_delta    numeric(20, 0) NOT NULL DEFAULT 0,
    ADD COLUMN previous_bucket timestamptz,
    ADD COLUMN previous_delta  numeric(20, 0);
COMMENT ON COLUMN counters.before_history IS
    'The part of count that was added while no history was kept: count is this, bucket_delta and the sum of the history.';
COMMENT ON COLUMN counters.bucket IS 'The bucket of history of the last change, null if there is none.';
COMMENT ON COLUMN counters.bucket_delta IS 'Net change in that bucket that is not in the table history; 0 if there is no bucket.';
COMMENT ON COLUMN counters.previous_bucket IS 'The bucket that the last upsert has replaced, null if it has replaced none.';
COMMENT ON COLUMN counters.previous_delta IS 'Net change in that bucket. The table history has it, so it no longer counts here.';
COMMENT ON TABLE history IS 'Internal: read the view counter_history, which has the last bucket of each counter too.';

CREATE OR REPLACE VIEW counter_history AS
SELECT key, bucket, sum(delta) AS delta
FROM (
    SELECT key, bucket, delta FROM history
    UNION ALL
    SELECT key, bucket, bucket_delta FROM counters WHERE bucket_delta <> 0
) AS b
GROUP BY key, bucket;

-- +goose Down
INSERT INTO history AS h (key, bucket, shard, delta)
SELECT key, bucket, shard, bucket_delta FROM counters WHERE bucket_delta <> 0
ON CONFLICT (key, bucket, shard) DO UPDATE SET delta = h.delta + excluded.delta;

CREATE OR REPLACE VIEW counter_history AS
SELECT key, bucket, sum(delta) AS delta
FROM history
GROUP BY key, bucket;
COMMENT ON TABLE history IS 'Internal: read the view counter_history.';
COMMENT ON COLUMN counters.before_history IS 'The part of count that was added while no history was kept: count is this and the sum of the history.';

ALTER TABLE counters
    DROP COLUMN previous_delta,
    DROP COLUMN previous_bucket,
    DROP COLUMN bucket_delta,
    DROP COLUMN bucket;
