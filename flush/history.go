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

// divide says what of some sums is added before history, by their position, nil if nothing is, and returns what goes into
// the history of hours and of minutes.
func (f HistoryOf) divide(sums deltas, own History) (before []int64, hours, minutes deltas) {
	for i, key := range sums.keys {
		switch f.of(key, own) {
		case HistoryNone:
			if before == nil {
				before = make([]int64, len(sums.keys))
			}
			before[i] = sums.values[i]
		case HistoryMinute:
			minutes.keys, minutes.values = append(minutes.keys, key), append(minutes.values, sums.values[i])
		default:
			hours.keys, hours.values = append(hours.keys, key), append(hours.values, sums.values[i])
		}
	}
	return before, hours, minutes
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
