package client

import (
	"testing"
	"time"
)

// A call must end so long before the server forgets its id that no attempt arrives later than that.
func TestIDLifetimeFollowsDedupeWindow(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		opts []Option
		want time.Duration
	}{
		{nil, 4 * time.Minute},
		{[]Option{WithDedupeWindow(10 * time.Minute)}, 8 * time.Minute},
	} {
		c, err := Dial("127.0.0.1:1", test.opts...)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.retry.idLifetime; got != test.want {
			t.Errorf("an id is retried for %v, want %v", got, test.want)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}
