package flush

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/plusone-dev/plusone/internal/counter"
)

// Lists of likes are read backwards along an index that has only what is liked. Statements with and without a
// place to begin are apart, as one that has both cannot be planned well.
const (
	listLikersSQL = `SELECT actor, at FROM likes WHERE key = $1 AND liked ORDER BY at DESC, actor DESC LIMIT $2`
	moreLikersSQL = `SELECT actor, at FROM likes WHERE key = $1 AND liked AND (at, actor) < ($3, $4) ORDER BY at DESC, actor DESC LIMIT $2`
	listLikedSQL  = `SELECT key, at FROM likes WHERE actor = $1 AND liked ORDER BY at DESC, key DESC LIMIT $2`
	moreLikedSQL  = `SELECT key, at FROM likes WHERE actor = $1 AND liked AND (at, key) < ($3, $4) ORDER BY at DESC, key DESC LIMIT $2`
)

// ListLikers returns up to limit of those who like a key, newest first, from behind a place in the list. What is
// liked meanwhile comes before that place, and so changes nothing in what follows it.
func (p *Postgres) ListLikers(ctx context.Context, key string, after counter.LikeCursor, limit int) ([]counter.Liked, error) {
	return p.list(ctx, listLikersSQL, moreLikersSQL, key, after, limit, func(actor string) counter.Pair {
		return counter.Pair{Key: key, Actor: actor}
	})
}

// ListLiked returns up to limit of what an actor likes, as ListLikers does.
func (p *Postgres) ListLiked(ctx context.Context, actor string, after counter.LikeCursor, limit int) ([]counter.Liked, error) {
	return p.list(ctx, listLikedSQL, moreLikedSQL, actor, after, limit, func(key string) counter.Pair {
		return counter.Pair{Key: key, Actor: actor}
	})
}

func (p *Postgres) list(ctx context.Context, first, more, of string, after counter.LikeCursor, limit int,
	pair func(name string) counter.Pair,
) ([]counter.Liked, error) {
	query, args := first, []any{of, limit}
	if after != (counter.LikeCursor{}) {
		query, args = more, append(args, after.At, after.Name)
	}
	rows, err := p.pool.Query(ctx, query, args...)
	if err != nil {
		return nil, postgresError("list likes", err)
	}
	var list []counter.Liked
	var name string
	var at time.Time
	if _, err := pgx.ForEachRow(rows, []any{&name, &at}, func() error {
		list = append(list, counter.Liked{Pair: pair(name), At: at})
		return nil
	}); err != nil {
		return nil, postgresError("list likes", err)
	}
	return list, nil
}

// ListLikers is that of Postgres.
func (s *SQLite) ListLikers(ctx context.Context, key string, after counter.LikeCursor, limit int) ([]counter.Liked, error) {
	return s.list(ctx, listLikersSQL, moreLikersSQL, key, after, limit, func(actor string) counter.Pair {
		return counter.Pair{Key: key, Actor: actor}
	})
}

// ListLiked is that of Postgres.
func (s *SQLite) ListLiked(ctx context.Context, actor string, after counter.LikeCursor, limit int) ([]counter.Liked, error) {
	return s.list(ctx, listLikedSQL, moreLikedSQL, actor, after, limit, func(key string) counter.Pair {
		return counter.Pair{Key: key, Actor: actor}
	})
}

func (s *SQLite) list(ctx context.Context, first, more, of string, after counter.LikeCursor, limit int,
	pair func(name string) counter.Pair,
) ([]counter.Liked, error) {
	query, args := first, []any{of, limit}
	if after != (counter.LikeCursor{}) {
		query, args = more, append(args, after.At.UnixMicro(), after.Name)
	}
	rows, err := s.readers.QueryContext(ctx, strings.ReplaceAll(query, "$", "?"), args...) // SQLite numbers with ?
	if err != nil {
		return nil, sqliteError("list likes", err)
	}
	var list []counter.Liked
	var name string
	var at int64
	if err := forEachRow(rows, []any{&name, &at}, func() {
		list = append(list, counter.Liked{Pair: pair(name), At: time.UnixMicro(at)})
	}); err != nil {
		return nil, sqliteError("list likes", err)
	}
	return list, nil
}
