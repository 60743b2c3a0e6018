package flush

import (
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

// bucket is the start, in Unix ms, of the bucket that holds the moment ms. HistoryNone has no buckets.
func (h History) bucket(ms int64) int64 {
	size := time.Hour.Milliseconds()
	if h == HistoryMinute {
		size = time.Minute.Milliseconds()
	}
	return ms - ms%size
}
