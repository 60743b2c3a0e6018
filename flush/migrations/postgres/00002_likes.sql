-- +goose Up

-- Partitioned so that a vacuum, or the rebuild of an index, takes on a sixteenth at a time.
CREATE TABLE likes (
    key   text COLLATE "C" NOT NULL,
    actor text COLLATE "C" NOT NULL,
    liked boolean          NOT NULL,
    at    timestamptz      NOT NULL,
    was   boolean                   DEFAULT false,
    PRIMARY KEY (key, actor)
) PARTITION BY HASH (key);
COMMENT ON TABLE likes IS 'Stable: one row for each key and actor that was ever liked. In sharded mode it lags by the flush interval.';
COMMENT ON COLUMN likes.key IS 'Key of the counter.';
COMMENT ON COLUMN likes.actor IS 'Who likes, or liked, it.';
COMMENT ON COLUMN likes.liked IS 'Whether the actor likes it now.';
COMMENT ON COLUMN likes.at IS 'Since when.';
COMMENT ON COLUMN likes.was IS 'Internal: what liked was before the row was last written, by which an upsert tells what it changed. Null is as good as false.';

-- +goose StatementBegin
DO $$
BEGIN
    FOR i IN 0..15 LOOP
        EXECUTE format('CREATE TABLE likes_%s PARTITION OF likes FOR VALUES WITH (MODULUS 16, REMAINDER %s)', lpad(i::text, 2, '0'), i);
    END LOOP;
END $$;
-- +goose StatementEnd

-- Lists are read backwards: newest first.
CREATE INDEX likes_by_key ON likes (key, at, actor) WHERE liked;
CREATE INDEX likes_by_actor ON likes (actor, at, key) WHERE liked;

ALTER TABLE counters ADD COLUMN before_history numeric(20, 0) NOT NULL DEFAULT 0;
COMMENT ON COLUMN counters.before_history IS 'The part of count that was added while no history was kept: count is this and the sum of the history.';
UPDATE counters SET before_history = count - coalesce(
    (SELECT sum(delta) FROM history WHERE history.key = counters.key AND history.shard = counters.shard), 0);

ALTER TABLE request_ids ADD COLUMN changed boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN request_ids.changed IS 'Of a like: whether it changed anything.';

-- +goose Down
ALTER TABLE request_ids DROP COLUMN changed;
ALTER TABLE counters DROP COLUMN before_history;
DROP TABLE likes;
