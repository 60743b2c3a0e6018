package server

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// The metric of broken requests has each field from the start: alerts on a rise from nothing miss the first event of others.
func TestFieldsOfInvalidRequests(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range regexp.MustCompile(`(?:\.add|checkText)\("([a-z_]+)"`).FindAllSubmatch(text, -1) {
			named[string(found[1])] = true
		}
	}
	if got := slices.Sorted(maps.Keys(named)); !slices.Equal(got, checkedFields) {
		t.Errorf("checks name the fields %q, and the metric has %q", got, checkedFields)
	}
}

func TestIncrementChecks(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{})
	long := strings.Repeat("k", 257)
	for name, tc := range map[string]struct {
		req    *plusonev1.IncrementRequest
		fields []string
	}{
		"plain":               {req: &plusonev1.IncrementRequest{Key: "views/post:42"}},
		"longest key":         {req: &plusonev1.IncrementRequest{Key: long[:256]}},
		"other script":        {req: &plusonev1.IncrementRequest{Key: "views/日本語-é-🎉"}},
		"replacement":         {req: &plusonev1.IncrementRequest{Key: "a\ufffdb"}},
		"all fields":          {req: &plusonev1.IncrementRequest{Key: "k", Delta: proto.Int64(-5), RequestId: "r", Actor: "a", OncePer: durationpb.New(time.Hour)}},
		"actor alone":         {req: &plusonev1.IncrementRequest{Key: "k", Actor: "a"}},
		"longest texts":       {req: &plusonev1.IncrementRequest{Key: "k", Actor: long[:128], RequestId: long[:128]}},
		"largest delta":       {req: &plusonev1.IncrementRequest{Key: "k", Delta: proto.Int64(1e12)}},
		"smallest delta":      {req: &plusonev1.IncrementRequest{Key: "k", Delta: proto.Int64(-1e12)}},
		"longest once_per":    {req: &plusonev1.IncrementRequest{Key: "k", Actor: "a", OncePer: durationpb.New(7 * 24 * time.Hour)}},
		"shortest once_per":   {req: &plusonev1.IncrementRequest{Key: "k", Actor: "a", OncePer: durationpb.New(time.Millisecond)}},
		"no key":              {&plusonev1.IncrementRequest{}, []string{"key"}},
		"long key":            {&plusonev1.IncrementRequest{Key: long}, []string{"key"}},
		"space":               {&plusonev1.IncrementRequest{Key: "a b"}, []string{"key"}},
		"space after é":       {&plusonev1.IncrementRequest{Key: "é b"}, []string{"key"}},
		"no-break space":      {&plusonev1.IncrementRequest{Key: "a\u00a0b"}, []string{"key"}},
		"ideographic space":   {&plusonev1.IncrementRequest{Key: "a\u3000b"}, []string{"key"}},
		"line separator":      {&plusonev1.IncrementRequest{Key: "a\u2028b"}, []string{"key"}},
		"newline":             {&plusonev1.IncrementRequest{Key: "a\n"}, []string{"key"}},
		"NUL":                 {&plusonev1.IncrementRequest{Key: "a\x00"}, []string{"key"}},
		"DEL":                 {&plusonev1.IncrementRequest{Key: "a\x7f"}, []string{"key"}},
		"zero width":          {&plusonev1.IncrementRequest{Key: "a\u200b"}, []string{"key"}},
		"zero delta":          {&plusonev1.IncrementRequest{Key: "k", Delta: proto.Int64(0)}, []string{"delta"}},
		"large delta":         {&plusonev1.IncrementRequest{Key: "k", Delta: proto.Int64(1e12 + 1)}, []string{"delta"}},
		"least int64":         {&plusonev1.IncrementRequest{Key: "k", Delta: proto.Int64(math.MinInt64)}, []string{"delta"}},
		"long actor":          {&plusonev1.IncrementRequest{Key: "k", Actor: long[:129]}, []string{"actor"}},
		"bad actor":           {&plusonev1.IncrementRequest{Key: "k", Actor: "a b"}, []string{"actor"}},
		"long request_id":     {&plusonev1.IncrementRequest{Key: "k", RequestId: long[:129]}, []string{"request_id"}},
		"bad request_id":      {&plusonev1.IncrementRequest{Key: "k", RequestId: "a\t"}, []string{"request_id"}},
		"once_per, no actor":  {&plusonev1.IncrementRequest{Key: "k", OncePer: durationpb.New(time.Hour)}, []string{"actor"}},
		"once_per 0":          {&plusonev1.IncrementRequest{Key: "k", Actor: "a", OncePer: &durationpb.Duration{}}, []string{"once_per"}},
		"once_per negative":   {&plusonev1.IncrementRequest{Key: "k", Actor: "a", OncePer: durationpb.New(-time.Hour)}, []string{"once_per"}},
		"once_per fraction":   {&plusonev1.IncrementRequest{Key: "k", Actor: "a", OncePer: durationpb.New(1500 * time.Microsecond)}, []string{"once_per"}},
		"once_per 7 d 1 ms":   {&plusonev1.IncrementRequest{Key: "k", Actor: "a", OncePer: durationpb.New(7*24*time.Hour + time.Millisecond)}, []string{"once_per"}},
		"once_per centuries":  {&plusonev1.IncrementRequest{Key: "k", Actor: "a", OncePer: &durationpb.Duration{Seconds: 300_000_000_000}}, []string{"once_per"}},
		"once_per not valid":  {&plusonev1.IncrementRequest{Key: "k", Actor: "a", OncePer: &durationpb.Duration{Seconds: 1, Nanos: -1}}, []string{"once_per"}},
		"everything is wrong": {&plusonev1.IncrementRequest{Delta: proto.Int64(0), RequestId: " ", OncePer: durationpb.New(-1)}, []string{"key", "delta", "request_id", "once_per", "actor"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.client.Increment(t.Context(), tc.req)
			if tc.fields == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST", fields: tc.fields})
		})
	}
}

func TestReadChecks(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{})
	badDuration, badTime := &durationpb.Duration{Nanos: 2e9}, &timestamppb.Timestamp{Seconds: 1 << 60}
	for name, tc := range map[string]struct {
		req    *plusonev1.GetRequest
		fields []string
	}{
		"plain":            {req: &plusonev1.GetRequest{Key: "k"}},
		"longest max_age":  {req: &plusonev1.GetRequest{Key: "k", MaxAge: &durationpb.Duration{Seconds: 315_576_000_000}}},
		"min_as_of":        {req: &plusonev1.GetRequest{Key: "k", MinAsOf: timestamppb.New(storeTime)}},
		"no key":           {&plusonev1.GetRequest{}, []string{"key"}},
		"negative max_age": {&plusonev1.GetRequest{Key: "k", MaxAge: durationpb.New(-1)}, []string{"max_age"}},
		"invalid max_age":  {&plusonev1.GetRequest{Key: "k", MaxAge: badDuration}, []string{"max_age"}},
		"invalid moment":   {&plusonev1.GetRequest{Key: "k", MinAsOf: badTime}, []string{"min_as_of"}},
		"everything":       {&plusonev1.GetRequest{Key: " ", MaxAge: badDuration, MinAsOf: badTime}, []string{"key", "max_age", "min_as_of"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.client.Get(t.Context(), tc.req)
			if tc.fields != nil {
				wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST", fields: tc.fields})
			} else if err != nil {
				t.Error(err)
			}
		})
	}

	keys := func(n int) []string {
		all := make([]string, n)
		for i := range all {
			all[i] = fmt.Sprint("k", i)
		}
		return all
	}
	with := func(i int, key string) []string {
		all := keys(9)
		all[i] = key
		return all
	}
	for name, tc := range map[string]struct {
		req    *plusonev1.BatchGetRequest
		fields []string
	}{
		"most keys":     {req: &plusonev1.BatchGetRequest{Keys: keys(1000)}},
		"no keys":       {&plusonev1.BatchGetRequest{}, []string{"keys"}},
		"too many keys": {&plusonev1.BatchGetRequest{Keys: keys(1001)}, []string{"keys"}},
		"bad key":       {&plusonev1.BatchGetRequest{Keys: with(7, "a b"), MaxAge: badDuration}, []string{"keys[7]", "max_age"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.client.BatchGet(t.Context(), tc.req)
			if tc.fields != nil {
				wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST", fields: tc.fields})
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBatchChecks(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{MaxDelta: math.MaxInt64})
	many := func(n int, key string) []*plusonev1.BatchEntry {
		all := make([]*plusonev1.BatchEntry, n)
		for i := range all {
			all[i] = &plusonev1.BatchEntry{Key: key, Delta: 1}
		}
		return all
	}
	bad := many(5, "k")
	bad[3] = &plusonev1.BatchEntry{Key: "a b"}
	firstTen := make([]string, 10)
	for i := range firstTen {
		firstTen[i] = fmt.Sprintf("entries[%d].key", i)
	}
	for name, tc := range map[string]struct {
		req    *plusonev1.BatchIncrementRequest
		fields []string
	}{
		"one":      {req: &plusonev1.BatchIncrementRequest{Entries: many(1, "k"), RequestId: "r"}},
		"most":     {req: &plusonev1.BatchIncrementRequest{Entries: many(10_000, "k")}},
		"none":     {&plusonev1.BatchIncrementRequest{RequestId: "r"}, []string{"entries"}},
		"too many": {&plusonev1.BatchIncrementRequest{Entries: many(10_001, "k")}, []string{"entries"}},
		"entry 3":  {&plusonev1.BatchIncrementRequest{Entries: bad, RequestId: " "}, []string{"request_id", "entries[3].key", "entries[3].delta"}},
		"bounded":  {&plusonev1.BatchIncrementRequest{Entries: many(10_000, " ")}, firstTen},
		"overflow": {&plusonev1.BatchIncrementRequest{Entries: []*plusonev1.BatchEntry{
			{Key: "a", Delta: math.MaxInt64}, {Key: "b", Delta: 1}, {Key: "a", Delta: 1},
		}}, []string{"entries[2].delta"}},
		"overflow below": {&plusonev1.BatchIncrementRequest{Entries: []*plusonev1.BatchEntry{
			{Key: "a", Delta: -math.MaxInt64}, {Key: "a", Delta: -2},
		}}, []string{"entries[1].delta"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.client.BatchIncrement(t.Context(), tc.req)
			if tc.fields != nil {
				wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST", fields: tc.fields})
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	for _, field := range []string{"entries", "request_id"} {
		c, err := r.server.cache.metrics.invalid.GetMetricWithLabelValues(field)
		if err != nil || value(t, c) == 0 {
			t.Errorf("no violation of %s was counted (%v)", field, err)
		}
	}
}

// The largest batch that the contract allows must get through. TestLargestImportPasses is about the largest request.
func TestLargestBatchPasses(t *testing.T) {
	t.Parallel()
	store := &scriptedStore{}
	r := start(t, store, Config{})
	req := &plusonev1.BatchIncrementRequest{RequestId: strings.Repeat("r", 128)}
	for i := range counter.MaxEntries {
		req.Entries = append(req.Entries, &plusonev1.BatchEntry{
			Key: fmt.Sprintf("%0256d", i), Delta: -1, // a negative varint is the longest
		})
	}
	if _, err := r.client.BatchIncrement(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if n := len(store.lastChange(t).Entries); n != counter.MaxEntries {
		t.Errorf("the store saw %d entries", n)
	}
}

func TestSumEntriesAgainstMap(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 300 {
		n := 1 + rnd.IntN(200)
		var in []*plusonev1.BatchEntry
		want := map[string]int64{}
		for range n {
			e := &plusonev1.BatchEntry{Key: fmt.Sprint("k", rnd.IntN(n)), Delta: 1 - 2*rnd.Int64N(2)}
			in = append(in, e)
			want[e.Key] += e.Delta
		}
		got, overflowing := sumEntries(in)
		if overflowing != -1 {
			t.Fatalf("overflow at %d", overflowing)
		}
		for _, e := range got {
			if want[e.Key] != e.Delta {
				t.Fatalf("%s: got %d, want %d", e.Key, e.Delta, want[e.Key])
			}
			delete(want, e.Key)
		}
		for key, delta := range want {
			t.Fatalf("%s: missing, want %d", key, delta)
		}
	}
}

func FuzzKey(f *testing.F) {
	for _, seed := range []string{"", "views/post:42", " ", "a b", "é", "\xff", "a\u00a0", "\ufffd", "\u2028", strings.Repeat("é", 129)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, key string) {
		valid := len(key) >= 1 && len(key) <= 256 && utf8.ValidString(key)
		for _, r := range key {
			valid = valid && unicode.IsPrint(r) && !unicode.IsSpace(r)
		}
		if got := textProblem(key, counter.MaxKeyBytes) == ""; got != valid {
			t.Errorf("%q: valid is %v, want %v", key, got, valid)
		}
	})
}

func BenchmarkCheckIncrement(b *testing.B) {
	req := &plusonev1.IncrementRequest{
		Key: "views/post:1234567", RequestId: "0190b5f0-0000-7000-8000-000000000000", Actor: "user:42",
	}
	b.ReportAllocs()
	for b.Loop() {
		var v violations
		checkIncrement(req, DefaultMaxDelta, &v)
		if v.err() != nil {
			b.Fatal("invalid")
		}
	}
}

func BenchmarkCheckBatch(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000} {
		req := &plusonev1.BatchIncrementRequest{}
		for i := range n {
			req.Entries = append(req.Entries, &plusonev1.BatchEntry{Key: fmt.Sprint("views/post:", i), Delta: 1})
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var v violations
				checkBatch(req, DefaultMaxDelta, &v)
				if v.err() != nil {
					b.Fatal("invalid")
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/entry")
		})
	}
}
