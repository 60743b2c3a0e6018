package counter

import "errors"

// Errors of a change whose request id was looked at first. Nothing was changed.
var (
	// ErrRequestIDReused: the id was used before, for something else.
	ErrRequestIDReused = errors.New("request id was used before with another payload")
	// ErrRequestIDExpired: the id is too old for the store to know whether it was counted.
	ErrRequestIDExpired = errors.New("request id is older than the dedupe window")
	// ErrRequestIDEarly: the id is from more than MaxEarly in the future.
	ErrRequestIDEarly = errors.New("request id is from the future")
)

// Errors of a change that the store cannot take. Nothing was changed.
var (
	// ErrOverflow: a total would leave the range of int64.
	ErrOverflow = errors.New("total would overflow int64")
	// ErrOverloaded: a queue is full, here or in the store.
	ErrOverloaded = errors.New("store is overloaded")
	// ErrFull: the store is out of memory or disk.
	ErrFull = errors.New("store is full")
	// ErrUnavailable: the store cannot be reached, or is shutting down.
	ErrUnavailable = errors.New("store is unavailable")
)

// ErrInDoubt: the store's answer was lost. The change may or may not have been counted; to repeat it with
// the same request id settles the matter.
var ErrInDoubt = errors.New("outcome is unknown")
