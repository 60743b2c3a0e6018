package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

const (
	// adminAttempt is for one attempt of an administrator's call: longer than a server works on it.
	adminAttempt = 35 * time.Second
	// adminTimeout is for such a call whose context has no deadline.
	adminTimeout = 10 * time.Minute
	// importChunk is how many items of a stream are imported under one request id. It never changes, or an import that is
	// resumed would divide its stream otherwise.
	importChunk = 5_000
)

// Deleted is what became of a DeleteCounter.
type Deleted struct {
	// Duplicate is true if an earlier call with the same request id had done it.
	Duplicate bool
	// LikesRemoved is how many likes were taken back.
	LikesRemoved int64
	// AsOf is a moment by the store's clock from which every server's fresh read shows it.
	AsOf time.Time
}

// DeleteCounter resets the counter named key to 0 and takes its likes back, however long that takes: some seconds at
// least if likes are drained from Redis. It needs the right to administrate. The request id is made if it is empty.
//
// What was acknowledged before the call is gone when it returns, and what begins afterwards stays. Errors are those of
// Increment; to repeat the call with Error.RequestID, within the dedupe window, goes on where it was.
func (c *Client) DeleteCounter(ctx context.Context, key, requestID string) (Deleted, error) {
	const method = "Delete"
	ownID := requestID == ""
	if ownID {
		requestID = newRequestID()
	}
	for _, f := range []struct{ field, text string }{{"request_id", requestID}, {"key", key}} {
		if !utf8.ValidString(f.text) {
			return Deleted{}, refuse(method, requestID, f.field, notUTF8)
		}
	}
	var deleted Deleted
	req := &plusonev1.DeleteRequest{Key: key, RequestId: requestID}
	for {
		r := c.adminRetry()
		resp, err := invoke(ctx, &r, method, requestID, c.admin.Delete, req, asItIs[*plusonev1.DeleteResponse])
		if err != nil {
			return deleted, err
		}
		deleted.LikesRemoved += resp.GetLikesRemoved()
		if resp.GetDone() {
			deleted.Duplicate, deleted.AsOf = resp.GetDuplicate() && !ownID, moment(resp.GetAsOf())
			return deleted, nil
		}
	}
}

// Forgotten is what became of a ForgetActor.
type Forgotten struct {
	// LikesRemoved is how many likes were taken back, RowsDeleted how many rows with the actor's name were deleted.
	LikesRemoved, RowsDeleted int64
}

// ForgetActor takes back all likes of an actor, and deletes what the ledger has with the actor's name, however long that
// takes. It needs the right to administrate. Errors are those of Get; the call may be repeated after any.
func (c *Client) ForgetActor(ctx context.Context, actor string) (Forgotten, error) {
	const method = "ForgetActor"
	if !utf8.ValidString(actor) {
		return Forgotten{}, refuse(method, "", "actor", notUTF8)
	}
	var forgotten Forgotten
	req := &plusonev1.ForgetActorRequest{Actor: actor}
	for {
		r := c.adminRetry()
		resp, err := invoke(ctx, &r, method, "", c.admin.ForgetActor, req, asItIs[*plusonev1.ForgetActorResponse])
		if err != nil {
			return forgotten, err
		}
		forgotten.LikesRemoved += resp.GetLikesRemoved()
		forgotten.RowsDeleted += resp.GetRowsDeleted()
		if resp.GetDone() {
			return forgotten, nil
		}
	}
}

// ImportItem is a count to add, or a like to set if it has an Actor.
type ImportItem struct {
	Key string
	// Delta is not 0 unless the item is a like.
	Delta int64
	// Actor likes the key since Since; the zero time is now.
	Actor string
	Since time.Time
}

// Import imports items in chunks, one after the other, and calls acknowledged after each with the number of chunks that
// are done; an error of it ends the import. It needs the right to administrate.
//
// To resume an import after a failure, give the same name, the same items in the same order, and the last number that was
// acknowledged as skip. The chunk that was not acknowledged has the same request id as before, made of name and its number,
// so that it counts once if that is within the dedupe window of the server. After that, find out whether it was
// counted before you resume. A key and actor may be in a chunk of 5,000 once.
//
// Errors are those of BatchIncrement.
func (c *Client) Import(ctx context.Context, name string, items iter.Seq[ImportItem], skip int, acknowledged func(chunks int) error) error {
	if name == "" || skip < 0 {
		return errors.New("plusone: an import needs a name, and skips no less than 0 chunks")
	}
	chunk, done := &plusonev1.ImportRequest{}, 0
	send := func() error {
		defer func() { chunk = &plusonev1.ImportRequest{} }()
		if done++; done <= skip {
			return nil
		}
		chunk.RequestId = fmt.Sprintf("%s/%d", name, done)
		r := c.adminRetry()
		_, err := invoke(ctx, &r, "Import", chunk.RequestId, c.admin.Import, chunk, importOutcome)
		if err != nil || acknowledged == nil {
			return err
		}
		return acknowledged(done)
	}
	for item := range items {
		if !utf8.ValidString(name + item.Key + item.Actor) {
			return refuse("Import", name, "items", notUTF8)
		}
		if item.Actor == "" {
			chunk.Totals = append(chunk.Totals, &plusonev1.ImportTotal{Key: item.Key, Delta: item.Delta})
		} else {
			like := &plusonev1.ImportLike{Key: item.Key, Actor: item.Actor}
			if !item.Since.IsZero() {
				like.LikedAt = timestamppb.New(item.Since)
			}
			chunk.Likes = append(chunk.Likes, like)
		}
		if len(chunk.Totals)+len(chunk.Likes) == importChunk {
			if err := send(); err != nil {
				return err
			}
		}
	}
	if len(chunk.Totals)+len(chunk.Likes) == 0 {
		return nil
	}
	return send()
}

// adminRetry is the retrier of calls that take long.
func (c *Client) adminRetry() retrier {
	r := c.retry
	r.attemptTimeout, r.timeout = max(r.attemptTimeout, adminAttempt), max(r.timeout, adminTimeout)
	return r
}

func asItIs[Response any](resp Response) (Response, error) { return resp, nil }

// importOutcome reads the answer to an Import.
func importOutcome(resp *plusonev1.ImportResponse) (struct{}, error) {
	switch resp.GetOutcome() {
	case plusonev1.Outcome_OUTCOME_APPLIED, plusonev1.Outcome_OUTCOME_DUPLICATE:
		return struct{}{}, nil
	default:
		return struct{}{}, status.Error(codes.Internal, "server answered an unknown outcome")
	}
}
