-- Everything lives in the schema that the connection's search_path names first.

-- +goose Up

-- Updated in place all the time: room on the page keeps updates off the indexes (HOT), so no column that
-- a change touches may be indexed.
CREATE TABLE counters (
    key        text COLLATE "C" NOT NULL,
    shard      smallint         NOT NULL,
    count      bigint           NOT NULL DEFAULT 0,
    likes      bigint           NOT NULL DEFAULT 0,
    spread     bigint           NOT NULL DEFAULT 0,
    updated_at timestamptz      NOT NULL,
    PRIMARY KEY (key, shard)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
COMMENT ON TABLE counters IS 'Internal: read the view counter_totals. A row per key and shard; only keys that got hot have more than one.';
COMMENT ON COLUMN counters.count IS 'All increments and likes of the key on the shard.';
COMMENT ON COLUMN counters.likes IS 'The part of count that comes from likes.';
COMMENT ON COLUMN counters.spread IS 'Since when the key is spread over all shards, Unix ms, or over fewer, then that * 1024 + their number; 0 if it is not. Set on the home shard only.';
CREATE INDEX counters_spread ON counters (shard) WHERE spread <> 0;

-- The net of a bucket is the difference of two totals, which needs one bit more than a bigint. The shard is
-- in the key so that transactions of different shards never wait for each other.
CREATE TABLE history (
    key    text COLLATE "C" NOT NULL,
    bucket timestamptz      NOT NULL,
    shard  smallint         NOT NULL,
    delta  numeric(20, 0)   NOT NULL,
    PRIMARY KEY (key, bucket, shard)
) WITH (fillfactor = 85);
COMMENT ON TABLE history IS 'Internal: read the view counter_history.';

CREATE TABLE shards (
    shard     smallint PRIMARY KEY,
    watermark bigint NOT NULL DEFAULT 0,
    token     text   NOT NULL DEFAULT ''
) WITH (fillfactor = 50);
COMMENT ON COLUMN shards.watermark IS 'Id of the last window of the shard that was applied; an older window never is.';
COMMENT ON COLUMN shards.token IS 'Token by which that window was sealed in Redis.';

-- Rows are inserted, kept for the dedupe window, and deleted, so dead rows are the rule.
CREATE TABLE request_ids (
    id          bytea PRIMARY KEY,
    fingerprint bigint      NOT NULL,
    at          timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.1);
COMMENT ON COLUMN request_ids.id IS 'A byte for the kind of id (7: UUIDv7, 0: any other), then the id.';
COMMENT ON COLUMN request_ids.fingerprint IS 'Identifies what the change did.';
CREATE INDEX request_ids_at ON request_ids (at);

CREATE TABLE once_claims (
    key     text COLLATE "C" NOT NULL,
    actor   text COLLATE "C" NOT NULL,
    period  bigint           NOT NULL,
    start   bigint           NOT NULL,
    expires timestamptz      NOT NULL,
    PRIMARY KEY (key, actor, period, start)
) WITH (autovacuum_vacuum_scale_factor = 0.1);
COMMENT ON TABLE once_claims IS 'Actors that were counted for a key in a period; period and start are in ms.';
CREATE INDEX once_claims_expires ON once_claims (expires);

CREATE TABLE settings (
    name  text PRIMARY KEY,
    value text NOT NULL
);
COMMENT ON TABLE settings IS 'Settings that cannot change for this ledger.';

CREATE VIEW counter_totals AS
SELECT key,
       least(greatest(sum(count), -9223372036854775808), 9223372036854775807)::bigint AS count,
       least(greatest(sum(likes), -9223372036854775808), 9223372036854775807)::bigint AS likes,
       max(updated_at) AS updated_at
FROM counters
GROUP BY key;
COMMENT ON VIEW counter_totals IS 'Stable: one row a counter. In sharded mode it lags by the flush interval.';
COMMENT ON COLUMN counter_totals.key IS 'Key of the counter.';
COMMENT ON COLUMN counter_totals.count IS 'Sum of all increments and likes.';
COMMENT ON COLUMN counter_totals.likes IS 'The part of count that comes from likes.';
COMMENT ON COLUMN counter_totals.updated_at IS 'When the counter was last changed here.';

CREATE VIEW counter_history AS
SELECT key, bucket, sum(delta) AS delta
FROM history
GROUP BY key, bucket;
COMMENT ON VIEW counter_history IS 'Stable: what each hour (or minute, as the server is set) added to a counter. Buckets without a change have no row.';
COMMENT ON COLUMN counter_history.key IS 'Key of the counter.';
COMMENT ON COLUMN counter_history.bucket IS 'Start of the hour or minute, UTC.';
COMMENT ON COLUMN counter_history.delta IS 'Net change in the bucket.';

-- +goose Down
DROP VIEW counter_history;
DROP VIEW counter_totals;
DROP TABLE settings;
DROP TABLE once_claims;
DROP TABLE request_ids;
DROP TABLE shards;
DROP TABLE history;
DROP TABLE counters;
