package flush

import (
	"strconv"
	"testing"
)

func TestKnownBalancesAreBounded(t *testing.T) {
	t.Parallel()
	var known knownBalances
	for i := range 10 * sqliteBalances {
		known.put("often", balance{total: int64(i)})
		known.put(strconv.Itoa(i), balance{total: int64(i)})
		if b, ok := known.get("often"); !ok || b.total != int64(i) {
			t.Fatalf("%+v, %v, want %d", b, ok, i)
		}
		if b, ok := known.get(strconv.Itoa(max(0, i-sqliteBalances/2))); !ok || b.total != int64(max(0, i-sqliteBalances/2)) {
			t.Fatalf("%+v, %v of a key that was put lately", b, ok)
		}
		if n := len(known.recent) + len(known.older); n > 2*sqliteBalances {
			t.Fatalf("%d balances are kept", n)
		}
	}
	known.forget()
	if _, ok := known.get("often"); ok {
		t.Error("a forgotten balance is known")
	}
}
