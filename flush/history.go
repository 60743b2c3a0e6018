package flush

import (
	"cmp"
	"fmt"
	"time"
)

// validate reports a setting that is not one of the constants.
func (h History) validate() error {
	switch h {
	case HistoryNone, HistoryHour, HistoryMinute:
		return nil
	}
	return fmt.Errorf("history %q is not one of %s, %s, %s", string(h), HistoryNone, HistoryHour, HistoryMinute)
}

// noBucket stands for that of HistoryNone.
const noBucket = -1

// HistoryOf tells the history of keys, which may change at any time. An empty History is the ledger's own.
type HistoryOf func(key string) History

// of is the history of a key; own is the ledger's. A nil HistoryOf is that for all keys.
func (f HistoryOf) of(key string, own History) History {
	if f == nil {
		return own
	}
	return cmp.Or(f(key), own)
}

// all are the histories of keys, as the database takes them. A nil HistoryOf has none to tell.
func (f HistoryOf) all(keys []string, own History) []string {
	if f == nil {
		return nil
	}
	histories := make([]string, len(keys))
	for i, key := range keys {
		histories[i] = string(f.of(key, own))
	}
	return histories
}

// bucket is the start, in Unix ms, of the bucket that holds the moment ms.
func (h History) bucket(ms int64) int64 {
	if h == HistoryNone {
		return noBucket
	}
	size := time.Hour.Milliseconds()
	if h == HistoryMinute {
		size = time.Minute.Milliseconds()
	}
	return ms - ms%size
}
