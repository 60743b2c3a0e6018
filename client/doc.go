// Package client counts with plusone from Go.
//
// # Basics
//
// One [Client] serves a whole process: it is safe for concurrent use, connects when first used and keeps one
// connection to each healthy server that its target resolves to, over which calls go round robin.
//
//	counters, err := client.Dial("plusone.internal:50051")
//	if err != nil {
//		return err
//	}
//	defer counters.Close()
//
//	receipt, err := counters.Increment(ctx, "views/post:42", 1)
//	count, err := counters.Get(ctx, "views/post:42", client.MinAsOf(receipt.AsOf))
//
// Every change carries a request id, made by the client unless the caller brings one ([WithRequestID]). A
// call that fails in a way that a retry can mend is retried by the client, with exponential backoff and full
// jitter, under that one id, until its context is done; so however many attempts it takes, it is counted
// once. A context without a deadline gets one of 5 s ([WithTimeout]), and each attempt 2 s of it
// ([WithAttemptTimeout]).
//
// # Credentials
//
// Where servers ask who calls, give TLS and a token, or TLS with a certificate of the caller's own:
//
//	counters, err := client.Dial("plusone.internal:50051",
//		client.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool})),
//		client.WithTokenFile("/run/secrets/plusone-token"))
//
// # Likes
//
// A like is a state of a key and an actor, and counts one for the key while it is set:
//
//	liked, err := counters.Like(ctx, "likes/post:42", "user:7")
//	states, err := counters.Liked(ctx, "user:7", []string{"likes/post:42", "likes/post:43"})
//
// To set it again changes nothing. The request id makes a difference all the same: a retry is told what the first
// attempt did, and one that comes late does not undo what the actor has done since.
//
// # Many increments
//
// A [Coalescer] adds increments up in the process and sends the sums, a batch every few milliseconds. It is for what is
// counted thousands of times a second:
//
//	views, err := counters.NewCoalescer()
//	if err != nil {
//		return err
//	}
//	defer views.Close(ctx)
//
//	err = views.Add(ctx, "views/post:42", 1)         // pending, and counted soon
//	err = views.AddAndWait(ctx, "views/post:42", 1)  // counted
//
// # Errors
//
// Every failed call returns an [*Error], which the package's sentinels classify with errors.Is. The one
// question after a failed change is whether it may have been counted all the same: if so, the error is
// [ErrInDoubt], whatever else it is. To settle the matter, repeat the call with the id it had:
//
//	var failure *client.Error
//	if errors.As(err, &failure) && failure.InDoubt {
//		receipt, err = counters.Increment(ctx, key, delta, client.WithRequestID(failure.RequestID))
//	}
//
// Applied and Duplicate then both mean that it is counted, once. An error that is not ErrInDoubt means that
// this call counted nothing.
//
// # Caveats
//
// Connections are in plain text unless [WithTransportCredentials] is given.
//
// A server remembers request ids for its dedupe window, 5 minutes by default. A call stops retrying at four
// fifths of that, however long its context lives; tell the client if the server's window is another
// ([WithDedupeWindow]). A caller who repeats an id must mind the window too: a UUIDv7, which is what the
// client makes, is refused when it is too old ([ErrRequestIDExpired]), but any other id would be counted
// again.
//
// The client's ids carry the time by its own clock. If that is more than 30 s fast, or slow by the dedupe
// window, servers refuse its changes ([ErrRequestIDEarly], [ErrRequestIDExpired]); nothing is counted twice.
// A clock that is slow by less shortens the time for which an id can be retried by as much.
//
// Service configs published by name resolvers are ignored, so that retries happen in one place only.
package client
