-- +goose Up

-- What there is of an actor besides what he likes, for when he is to be forgotten. Few rows are unliked, so it costs little.
CREATE INDEX likes_unliked_by_actor ON likes (actor) WHERE NOT liked;

-- +goose Down
DROP INDEX likes_unliked_by_actor;
