package client

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// LikeReceipt acknowledges a Like or an Unlike.
type LikeReceipt struct {
	// Changed is true if the call made a difference, and false if the like was as asked already. A call that
	// repeats another under its request id tells what that one did.
	Changed bool
	// Count of the key with this change, if CountKnown.
	Count int64
	// CountKnown is false if the store could not tell the count. The change is counted all the same.
	CountKnown bool
	// Provisional is true if the ledger could not be asked what the like was. Changed and Count then suppose
	// that it was the opposite, or what it was when the key became hot; the count is set right when the ledger is back.
	Provisional bool
	// AsOf is a moment by the store's clock from which every server's fresh read shows the change.
	AsOf time.Time
}

// LikeState is whether an actor likes a key.
type LikeState struct {
	Key   string
	Liked bool
	// Since is when the actor came to like the key, by the store's clock. It is the zero time if Liked is false.
	Since time.Time
}

// Like makes an actor (1 to 128 bytes, a user id for example) like the key, which counts one for it: once per key
// and actor, ever.
//
// Errors are those of Increment. A like is a state, so that one in doubt may also be settled by another call
// without its request id; but that one's Changed is then about itself alone.
func (c *Client) Like(ctx context.Context, key, actor string, opts ...LikeOption) (LikeReceipt, error) {
	const method = "Like"
	id := likeRequestID(opts)
	if err := refuseLike(method, id, key, actor); err != nil {
		return LikeReceipt{}, err
	}
	req := &plusonev1.LikeRequest{Key: key, Actor: actor, RequestId: id}
	return invoke(ctx, &c.retry, method, id, c.rpc.Like, req,
		func(resp *plusonev1.LikeResponse) (LikeReceipt, error) { return likeReceipt(resp, resp.Count) })
}

// Unlike takes an actor's like of the key back. Errors are those of Like.
func (c *Client) Unlike(ctx context.Context, key, actor string, opts ...LikeOption) (LikeReceipt, error) {
	const method = "Unlike"
	id := likeRequestID(opts)
	if err := refuseLike(method, id, key, actor); err != nil {
		return LikeReceipt{}, err
	}
	req := &plusonev1.UnlikeRequest{Key: key, Actor: actor, RequestId: id}
	return invoke(ctx, &c.retry, method, id, c.rpc.Unlike, req,
		func(resp *plusonev1.UnlikeResponse) (LikeReceipt, error) { return likeReceipt(resp, resp.Count) })
}

// Liked tells which of 1 to 1,000 keys an actor likes as of now, in the order of keys. Errors are those of Get.
func (c *Client) Liked(ctx context.Context, actor string, keys []string) ([]LikeState, error) {
	const method = "BatchGetLikes"
	if !utf8.ValidString(actor) {
		return nil, refuse(method, "", "actor", notUTF8)
	}
	if err := refuseKeys(method, keys); err != nil {
		return nil, err
	}
	req := &plusonev1.BatchGetLikesRequest{Actor: actor, Keys: keys}
	return invoke(ctx, &c.retry, method, "", c.rpc.BatchGetLikes, req,
		func(resp *plusonev1.BatchGetLikesResponse) ([]LikeState, error) {
			return likeStates(resp.GetLikes(), keys)
		})
}

// likeRequestID is the caller's request id, or a new one.
func likeRequestID(opts []LikeOption) string {
	var o likeOptions
	for _, opt := range opts {
		opt.applyLike(&o)
	}
	if o.requestID == "" {
		return newRequestID()
	}
	return o.requestID
}

// refuseLike returns why a like cannot be sent, or nil.
func refuseLike(method, id, key, actor string) error {
	for _, f := range []struct{ field, text string }{{"request_id", id}, {"key", key}, {"actor", actor}} {
		if !utf8.ValidString(f.text) {
			return refuse(method, id, f.field, notUTF8)
		}
	}
	return nil
}

// refuseKeys returns why the keys of a read cannot be sent, or nil.
func refuseKeys(method string, keys []string) error {
	for i, key := range keys {
		if !utf8.ValidString(key) {
			return refuse(method, "", fmt.Sprintf("keys[%d]", i), notUTF8)
		}
	}
	return nil
}

// answeredLike is what the answers to Like and Unlike have in common.
type answeredLike interface {
	GetChanged() bool
	GetProvisional() bool
	GetAsOf() *timestamppb.Timestamp
}

// likeReceipt reads the answer to a Like or Unlike. An answer without as_of is none, but looks like that to a like
// that changed nothing.
func likeReceipt(answer answeredLike, count *int64) (LikeReceipt, error) {
	if answer.GetAsOf() == nil {
		return LikeReceipt{}, status.Error(codes.Internal, "server answered without the time of the change")
	}
	r := LikeReceipt{Changed: answer.GetChanged(), Provisional: answer.GetProvisional(), AsOf: moment(answer.GetAsOf())}
	if count != nil {
		r.Count, r.CountKnown = *count, true
	}
	return r, nil
}

// likeStates reads the answers for keys, in their order. It never takes a missing answer, or that for another key,
// for "not liked".
func likeStates(answers []*plusonev1.LikeState, keys []string) ([]LikeState, error) {
	if len(answers) != len(keys) {
		return nil, status.Error(codes.Internal, "server answered another number of likes than was asked for")
	}
	states := make([]LikeState, len(keys))
	for i, key := range keys {
		if answers[i] == nil || answers[i].GetKey() != key {
			return nil, status.Error(codes.Internal, "server answered without the like that was asked for")
		}
		states[i] = LikeState{Key: key, Liked: answers[i].GetLiked()}
		if states[i].Liked {
			states[i].Since = moment(answers[i].GetLikedAt())
		}
	}
	return states, nil
}
