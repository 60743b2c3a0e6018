-- +goose Up

-- Stable: one row for each key and actor that was ever liked. at is since when, Unix µs.
CREATE TABLE likes (
    key   TEXT    NOT NULL,
    actor TEXT    NOT NULL,
    liked INTEGER NOT NULL,
    at    INTEGER NOT NULL,
    PRIMARY KEY (key, actor)
) STRICT, WITHOUT ROWID;

-- Lists are read backwards: newest first.
CREATE INDEX likes_by_key ON likes (key, at, actor) WHERE liked;
CREATE INDEX likes_by_actor ON likes (actor, at, key) WHERE liked;

-- The part of count that was added while no history was kept: count is this and the sum of the history.
ALTER TABLE counters ADD COLUMN before_history INTEGER NOT NULL DEFAULT 0;
UPDATE counters SET before_history = count - coalesce((SELECT sum(delta) FROM history WHERE history.key = counters.key), 0);

-- Of a like: whether it changed anything.
ALTER TABLE request_ids ADD COLUMN changed INTEGER NOT NULL DEFAULT 1;

-- +goose Down
ALTER TABLE request_ids DROP COLUMN changed;
ALTER TABLE counters DROP COLUMN before_history;
DROP TABLE likes;
