package server

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// scriptedReports lists the likes that it is given, or fails as it is told, and records what it was asked.
type scriptedReports struct {
	fail func(context.Context) error

	mu     sync.Mutex
	likes  []counter.Liked
	limits []int
}

func (r *scriptedReports) ListLikers(ctx context.Context, key string, after counter.LikeCursor, limit int) ([]counter.Liked, error) {
	return r.list(ctx, likersOfKey, func(l counter.Liked) bool { return l.Key == key }, after, limit)
}

func (r *scriptedReports) ListLiked(ctx context.Context, actor string, after counter.LikeCursor, limit int) ([]counter.Liked, error) {
	return r.list(ctx, likedByActor, func(l counter.Liked) bool { return l.Actor == actor }, after, limit)
}

func (r *scriptedReports) list(ctx context.Context, kind list, in func(counter.Liked) bool, after counter.LikeCursor, limit int,
) ([]counter.Liked, error) {
	if r.fail != nil {
		return nil, r.fail(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limits = append(r.limits, limit)
	newer := func(a, b counter.LikeCursor) int {
		if c := b.At.Compare(a.At); c != 0 {
			return c
		}
		return strings.Compare(b.Name, a.Name)
	}
	var found []counter.Liked
	for _, l := range r.likes {
		if in(l) && (after == counter.LikeCursor{} || newer(after, kind.cursor(l)) < 0) {
			found = append(found, l)
		}
	}
	slices.SortFunc(found, func(a, b counter.Liked) int { return newer(kind.cursor(a), kind.cursor(b)) })
	return found[:min(limit, len(found))], nil
}

func (r *scriptedReports) like(key, actor string, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.likes = append(r.likes, counter.Liked{Pair: counter.Pair{Key: key, Actor: actor}, At: at})
}

func (r *scriptedReports) lastLimit() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.limits[len(r.limits)-1]
}

// lister pages through a list over the wire. It is the same test for both.
type lister struct {
	list func(t *testing.T, size int32, token string) (names []string, moments []time.Time, next string)
	add  func(name string, at time.Time)
}

func listers(r *running, reports *scriptedReports) map[string]lister {
	return map[string]lister{
		"likers": {
			list: func(t *testing.T, size int32, token string) (names []string, moments []time.Time, next string) {
				t.Helper()
				resp, err := r.reports.ListLikers(t.Context(), &plusonev1.ListLikersRequest{Key: "listed", PageSize: size, PageToken: token})
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range resp.Likers {
					names, moments = append(names, l.Actor), append(moments, l.LikedAt.AsTime())
				}
				return names, moments, resp.NextPageToken
			},
			add: func(name string, at time.Time) {
				reports.like("listed", name, at)
				reports.like("another", name, at)
			},
		},
		"liked": {
			list: func(t *testing.T, size int32, token string) (names []string, moments []time.Time, next string) {
				t.Helper()
				resp, err := r.reports.ListLiked(t.Context(), &plusonev1.ListLikedRequest{Actor: "lister", PageSize: size, PageToken: token})
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range resp.Liked {
					names, moments = append(names, l.Key), append(moments, l.LikedAt.AsTime())
				}
				return names, moments, resp.NextPageToken
			},
			add: func(name string, at time.Time) {
				reports.like(name, "lister", at)
				reports.like(name, "another", at)
			},
		},
	}
}

func TestListsArePaged(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"likers", "liked"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reports := &scriptedReports{}
			l := listers(startWith(t, &scriptedStore{}, reports, Config{}), reports)[name]
			if names, _, next := l.list(t, 0, ""); len(names) != 0 || next != "" {
				t.Errorf("an empty list has %v and the token %q", names, next)
			}
			// Three likes a microsecond, so that pages end between and within moments.
			const n = 30
			var want []string
			for i := range n {
				name := fmt.Sprintf("é-%02d", i)
				l.add(name, storeTime.Add(time.Duration(i/3)*time.Microsecond))
				want = append(want, name)
			}
			slices.Reverse(want)
			for _, size := range []int32{1, 4, 10, 29, 30, 31, 1000} {
				var got []string
				token, pages := "", 0
				for {
					names, moments, next := l.list(t, size, token)
					for i, name := range names {
						at := n - 1 - slices.Index(want, name)
						if !moments[i].Equal(storeTime.Add(time.Duration(at/3) * time.Microsecond)) {
							t.Errorf("%s is of %v", name, moments[i])
						}
					}
					got, pages = append(got, names...), pages+1
					if next == "" {
						break
					}
					if len(names) != int(size) {
						t.Errorf("a page of %d has %d likes, and is not the last", size, len(names))
					}
					if next == token || pages > n {
						t.Fatalf("page %d leads to itself", pages)
					}
					token = next
				}
				if !slices.Equal(got, want) {
					t.Errorf("pages of %d: got %v, want %v", size, got, want)
				}
				if wantPages := (n + int(size) - 1) / int(size); pages != wantPages {
					t.Errorf("%d pages of %d, want %d", pages, size, wantPages)
				}
				if limit := reports.lastLimit(); limit != int(size)+1 {
					t.Errorf("the ledger was asked for %d likes for a page of %d", limit, size)
				}
			}
			if _, _, next := l.list(t, 0, ""); next != "" || reports.lastLimit() != 101 {
				t.Errorf("without a page_size the ledger was asked for %d likes", reports.lastLimit())
			}
			// What is liked meanwhile comes before the first page.
			_, _, token := l.list(t, 5, "")
			l.add("late", storeTime.Add(time.Hour))
			if names, _, _ := l.list(t, 5, token); !slices.Equal(names, want[5:10]) {
				t.Errorf("the second page is %v", names)
			}
		})
	}
}

func TestListChecks(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{})
	at := counter.LikeCursor{At: storeTime, Name: "n"}
	for name, tc := range map[string]struct {
		subject, token string
		size           int32
		fields         []string
	}{
		"plain":          {subject: "s"},
		"largest page":   {subject: "s", size: 1000},
		"page too large": {subject: "s", size: 1001, fields: []string{"page_size"}},
		"negative page":  {subject: "s", size: -1, fields: []string{"page_size"}},
		"no subject":     {fields: []string{"subject"}},
		"bad subject":    {subject: "a b", fields: []string{"subject"}},
		"long subject":   {subject: strings.Repeat("x", 257), fields: []string{"subject"}},
		"bad token":      {subject: "s", token: "!", fields: []string{"page_token"}},
		"everything":     {size: -1 << 31, token: "\u00e9", fields: []string{"subject", "page_size", "page_token"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, likers := r.reports.ListLikers(t.Context(), &plusonev1.ListLikersRequest{Key: tc.subject, PageSize: tc.size, PageToken: tc.token})
			_, liked := r.reports.ListLiked(t.Context(), &plusonev1.ListLikedRequest{Actor: tc.subject, PageSize: tc.size, PageToken: tc.token})
			for subject, err := range map[string]error{"key": likers, "actor": liked} {
				var fields []string
				for _, field := range tc.fields {
					fields = append(fields, strings.Replace(field, "subject", subject, 1))
				}
				if fields != nil {
					wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST", fields: fields})
				} else if err != nil {
					t.Error(err)
				}
			}
		})
	}
	// A token is of one list, and of one kind of list.
	foreign := failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST", fields: []string{"page_token"}}
	if _, err := r.reports.ListLikers(t.Context(), &plusonev1.ListLikersRequest{Key: "s", PageToken: pageToken(likersOfKey, "s", at)}); err != nil {
		t.Error(err)
	}
	for _, token := range []string{pageToken(likedByActor, "s", at), pageToken(likersOfKey, "t", at)} {
		_, err := r.reports.ListLikers(t.Context(), &plusonev1.ListLikersRequest{Key: "s", PageToken: token})
		wantFailure(t, err, foreign)
	}
	if _, err := r.reports.ListLiked(t.Context(), &plusonev1.ListLikedRequest{Actor: "s", PageToken: pageToken(likedByActor, "s", at)}); err != nil {
		t.Error(err)
	}
	for _, token := range []string{pageToken(likersOfKey, "s", at), pageToken(likedByActor, "t", at)} {
		_, err := r.reports.ListLiked(t.Context(), &plusonev1.ListLikedRequest{Actor: "s", PageToken: token})
		wantFailure(t, err, foreign)
	}
}

func TestListErrors(t *testing.T) {
	t.Parallel()
	unavailable := failure{code: codes.Unavailable, reason: "STORE_UNAVAILABLE", retry: true}
	for name, tc := range map[string]struct {
		fail           func(context.Context) error
		deadline, took time.Duration
		want           failure
	}{
		"unavailable": {
			fail: func(context.Context) error { return fmt.Errorf("%w: %w", counter.ErrUnavailable, errDriver) },
			want: unavailable,
		},
		"unknown": {
			fail: func(context.Context) error { return errDriver },
			want: failure{code: codes.Internal, reason: "INTERNAL"},
		},
		"slow": {
			fail: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
			took: DefaultRequestTimeout,
			want: unavailable,
		},
		"slow, near deadline": {
			fail:     func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
			deadline: time.Second, took: 900 * time.Millisecond,
			want: unavailable,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				config, err := Config{}.withDefaults()
				if err != nil {
					t.Fatal(err)
				}
				s := &reportService{reports: &scriptedReports{fail: tc.fail}, config: config, metrics: newMetrics()}
				for _, call := range []func(context.Context) error{
					func(ctx context.Context) error {
						_, err := s.ListLikers(ctx, &plusonev1.ListLikersRequest{Key: "k"})
						return err
					},
					func(ctx context.Context) error {
						_, err := s.ListLiked(ctx, &plusonev1.ListLikedRequest{Actor: "a"})
						return err
					},
				} {
					ctx, cancel := t.Context(), func() {}
					if tc.deadline > 0 {
						ctx, cancel = context.WithTimeout(ctx, tc.deadline)
					}
					began := time.Now()
					err := call(ctx)
					cancel()
					wantFailure(t, err, tc.want)
					if strings.Contains(status.Convert(err).Message(), "hunter2") {
						t.Errorf("driver text reached the caller: %v", err)
					}
					if took := time.Since(began); took != tc.took {
						t.Errorf("took %v", took)
					}
				}
			})
		})
	}
}

// No change of a token goes unnoticed: a token is of one list, and one place has one token.
func TestDamagedTokens(t *testing.T) {
	t.Parallel()
	cursor := counter.LikeCursor{At: time.UnixMicro(storeTime.UnixMicro()), Name: "user:é"}
	token := pageToken(likersOfKey, "posts/1", cursor)
	if got, ok := parsePageToken(likersOfKey, "posts/1", token); !ok || !got.At.Equal(cursor.At) || got.Name != cursor.Name {
		t.Fatalf("got %v, %v", got, ok)
	}
	for _, bad := range []string{
		token + "=", token + "\n", token[:5] + "\r\n" + token[5:], token + "A", token[1:], token[:4], "A", "AQ",
		strings.Repeat("A", 1<<20), base64.StdEncoding.EncodeToString([]byte(token)),
	} {
		if _, ok := parsePageToken(likersOfKey, "posts/1", bad); ok {
			t.Errorf("%.40q was taken", bad)
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		for bit := range 8 {
			damaged := slices.Clone(raw)
			damaged[i] ^= 1 << bit
			if got, ok := parsePageToken(likersOfKey, "posts/1", base64.RawURLEncoding.EncodeToString(damaged)); ok {
				t.Errorf("byte %d, bit %d: got %v", i, bit, got)
			}
		}
	}
}

// A forged token, with a checksum that is right, gets no further than a name and a moment that a ledger can
// look for.
func TestForgedTokens(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		list   list
		cursor counter.LikeCursor
		ok     bool
	}{
		"plain":        {likersOfKey, counter.LikeCursor{At: storeTime, Name: "a"}, true},
		"longest":      {likersOfKey, counter.LikeCursor{At: storeTime, Name: strings.Repeat("a", 128)}, true},
		"longest key":  {likedByActor, counter.LikeCursor{At: storeTime, Name: strings.Repeat("k", 256)}, true},
		"1970":         {likersOfKey, counter.LikeCursor{At: time.UnixMicro(0), Name: "a"}, true},
		"9999":         {likersOfKey, counter.LikeCursor{At: time.UnixMicro(maxTokenMicros), Name: "a"}, true},
		"10000":        {likersOfKey, counter.LikeCursor{At: time.UnixMicro(maxTokenMicros + 1), Name: "a"}, false},
		"1969":         {likersOfKey, counter.LikeCursor{At: time.UnixMicro(-1), Name: "a"}, false},
		"no name":      {likersOfKey, counter.LikeCursor{At: storeTime}, false},
		"NUL":          {likersOfKey, counter.LikeCursor{At: storeTime, Name: "a\x00"}, false},
		"not UTF-8":    {likersOfKey, counter.LikeCursor{At: storeTime, Name: "a\xff"}, false},
		"long actor":   {likersOfKey, counter.LikeCursor{At: storeTime, Name: strings.Repeat("a", 129)}, false},
		"long key":     {likedByActor, counter.LikeCursor{At: storeTime, Name: strings.Repeat("k", 257)}, false},
		"name of many": {likedByActor, counter.LikeCursor{At: storeTime, Name: strings.Repeat("k", 1<<20)}, false},
	} {
		got, ok := parsePageToken(tc.list, "s", pageToken(tc.list, "s", tc.cursor))
		if ok != tc.ok {
			t.Errorf("%s: taken is %v", name, ok)
		}
		if ok && (!got.At.Equal(tc.cursor.At.Truncate(time.Microsecond)) || got.Name != tc.cursor.Name) {
			t.Errorf("%s: got %v", name, got)
		}
	}
	// A part of one text is not taken for a part of the other.
	a := counter.LikeCursor{At: storeTime, Name: "a"}
	if pageToken(likersOfKey, "ab", a) == pageToken(likersOfKey, "a", a) {
		t.Error("two lists have one token")
	}
}

func FuzzPageToken(f *testing.F) {
	f.Add(pageToken(likersOfKey, "k", counter.LikeCursor{At: storeTime, Name: "a"}), "k")
	f.Add("", "k")
	f.Fuzz(func(t *testing.T, token, of string) {
		cursor, ok := parsePageToken(likersOfKey, of, token)
		if ok && (pageToken(likersOfKey, of, cursor) != token || textProblem(cursor.Name, counter.MaxActorBytes) != "") {
			t.Errorf("%q of %q became %v", token, of, cursor)
		}
	})
}
