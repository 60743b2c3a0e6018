package server

import (
	"context"
	"fmt"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// Admin is what AdminService works on, besides the store and the lists of likes.
type Admin struct {
	Store  AdminStore
	Ledger AdminLedger
}

// AdminStore is the live store, as far as AdminService alone needs it. Its methods are called concurrently and return soon
// after ctx ends.
type AdminStore interface {
	// Repeated reports whether a change of one entry, with a request id, was counted before. The error is
	// counter.ErrRequestIDReused if the id was used for something else, and tells of an id that is too old or too early.
	Repeated(ctx context.Context, c counter.Change) (bool, error)
	// SetLikes sets likes, each as of its moment, and returns how many of them that changed. To set them again changes
	// nothing, also after an error.
	SetLikes(ctx context.Context, likes []counter.DatedLike) (changed int, asOf time.Time, err error)
	// Mark marks what was acknowledged before the call.
	Mark(ctx context.Context) (counter.Mark, error)
	// Settled reports whether the ledger has all likes from before a mark.
	Settled(ctx context.Context, mark counter.Mark) (bool, error)
}

// AdminLedger is the ledger, as far as AdminService makes it forget. Each call deletes up to limit rows and returns how
// many it deleted: fewer than limit are the last.
type AdminLedger interface {
	// ForgetLikes deletes rows of a key, or else of an actor, that are unliked since the moment or longer. That is safe once
	// the ledger has all likes from before a mark of then: there is none left that might take a deleted row for granted.
	ForgetLikes(ctx context.Context, of counter.Pair, until time.Time, limit int) (int, error)
	// ForgetClaims deletes once-per claims of an actor.
	ForgetClaims(ctx context.Context, actor string, limit int) (int, error)
}

const (
	// adminLimit is how long a call of AdminService works: ample for a window to be drained, and no longer than a stop of
	// the server may take.
	adminLimit = 30 * time.Second
	// forgetRows is how many rows are deleted in one transaction.
	forgetRows = 1_000
	// The pauses between two looks whether the ledger has caught up.
	firstSettlePause = 10 * time.Millisecond
	lastSettlePause  = 200 * time.Millisecond
)

// takeBack takes back all likes of a key, or else of an actor, that were acknowledged before the call, and deletes their
// rows: those of before now. Likes that are set meanwhile may stay.
type takeBack struct {
	reports Reports
	admin   *Admin
	of      counter.Pair
	// moment is as of when likes are taken back: a like that is set later stays, whatever becomes of this call.
	moment time.Time
	// What was done.
	likes, rows int
	asOf        time.Time
}

// run lists and takes back, until the ledger has all that there was before, and lists nothing any more. It may be run
// again after an error.
func (t *takeBack) run(ctx context.Context) error {
	mark, err := t.admin.Store.Mark(ctx)
	if err != nil {
		return err
	}
	t.moment = mark.Now
	for settled := false; ; settled = true {
		listed, err := t.pass(ctx, !settled)
		if err != nil {
			return err
		}
		if settled && listed == 0 {
			break
		}
		// What was pending before the call is listed when it is drained, and what was taken back is not any more.
		if mark, err = t.admin.Store.Mark(ctx); err != nil {
			return err
		}
		if err := t.await(ctx, mark); err != nil {
			return err
		}
	}
	return t.forget(ctx, func(ctx context.Context) (int, error) {
		return t.admin.Ledger.ForgetLikes(ctx, t.of, t.moment, forgetRows)
	})
}

// pass goes through the ledger's list once and returns how many of the likes in it it has taken back.
func (t *takeBack) pass(ctx context.Context, first bool) (listed int, err error) {
	for after := (counter.LikeCursor{}); ; {
		likes, err := t.list(ctx, after)
		if err != nil || len(likes) == 0 {
			return listed, err
		}
		if first {
			// Clocks may have gone back: what the ledger has is from before all the same.
			if newest := likes[0].At.Add(time.Microsecond); newest.After(t.moment) {
				t.moment = newest
			}
			first = false
		}
		var unlikes []counter.DatedLike
		for _, like := range likes {
			if like.At.Before(t.moment) {
				unlikes = append(unlikes, counter.DatedLike{Pair: like.Pair, Micros: t.moment.UnixMicro()})
			}
		}
		if len(unlikes) > 0 {
			changed, asOf, err := t.admin.Store.SetLikes(ctx, unlikes)
			t.likes += changed
			if asOf.After(t.asOf) {
				t.asOf = asOf
			}
			if err != nil {
				return listed, err
			}
			listed += len(unlikes)
		}
		last := likes[len(likes)-1]
		after = counter.LikeCursor{At: last.At, Name: last.Actor}
		if t.of.Key == "" {
			after.Name = last.Key
		}
	}
}

func (t *takeBack) list(ctx context.Context, after counter.LikeCursor) ([]counter.Liked, error) {
	if t.of.Key == "" {
		return t.reports.ListLiked(ctx, t.of.Actor, after, counter.MaxListed)
	}
	return t.reports.ListLikers(ctx, t.of.Key, after, counter.MaxListed)
}

// await returns when the ledger has all likes from before the mark.
func (t *takeBack) await(ctx context.Context, mark counter.Mark) error {
	for pause := firstSettlePause; ; pause = min(2*pause, lastSettlePause) {
		settled, err := t.admin.Store.Settled(ctx, mark)
		if err != nil || settled {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return fmt.Errorf("%w: likes are pending: %w", counter.ErrUnavailable, err)
		}
	}
}

// forget deletes rows until none is left.
func (t *takeBack) forget(ctx context.Context, some func(context.Context) (int, error)) error {
	for {
		n, err := some(ctx)
		t.rows += n
		if err != nil || n < forgetRows {
			return err
		}
	}
}
