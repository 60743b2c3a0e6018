-- +goose Up

-- A UUIDv7 (its kind is 7) is forgotten by its own time, with which it begins, so only other ids need an order by the
-- time at which they came.
DROP INDEX request_ids_at;
CREATE INDEX request_ids_at ON request_ids (at) WHERE id < x'07';

-- +goose Down
DROP INDEX request_ids_at;
CREATE INDEX request_ids_at ON request_ids (at);
