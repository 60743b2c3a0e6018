package server

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// checkRequiredID checks a request id that must be there.
func checkRequiredID(text string, v *violations) counter.RequestID {
	if text == "" {
		v.add("request_id", "request_id", "must not be empty")
	}
	return checkRequestID(text, v)
}

// importChunk is what an Import asks for.
type importChunk struct {
	totals counter.Change // without entries if there are none
	likes  []counter.DatedLike
	// done marks a chunk that was imported. It changes nothing, and has a digest of the chunk for an actor.
	done counter.Change
}

// checkImport returns what a request asks for. It is valid only if v stays empty.
func checkImport(req *plusonev1.ImportRequest, now time.Time, v *violations) importChunk {
	id := checkRequiredID(req.RequestId, v)
	if n := len(req.Totals) + len(req.Likes); n < 1 || n > counter.MaxEntries {
		v.add("totals", "totals", fmt.Sprintf("and likes must be 1 to %d together, not %d", counter.MaxEntries, n))
		return importChunk{}
	}
	digest := sha256.New()
	note := func(texts ...string) {
		for _, text := range texts {
			digest.Write(append(binary.AppendUvarint(nil, uint64(len(text))), text...))
		}
	}
	chunk := importChunk{totals: counter.Change{RequestID: id.Derive("import")}}
	chunk.totals.Entries = checkTotals(req.Totals, v)
	for _, total := range req.Totals {
		note(total.GetKey(), fmt.Sprint(total.GetDelta()))
	}
	chunk.likes = checkImportLikes(req.Likes, now, v)
	for _, like := range chunk.likes {
		note(like.Key, like.Actor, fmt.Sprint(like.Micros))
	}
	if len(v.list) > 0 {
		return importChunk{}
	}
	var key string
	if len(req.Totals) > 0 {
		key = req.Totals[0].Key
	} else {
		key = req.Likes[0].Key
	}
	chunk.done = counter.Change{
		Entries: []counter.Entry{{Key: key}}, RequestID: id.Derive("imported"), Actor: hex.EncodeToString(digest.Sum(nil)),
	}
	return chunk
}

// checkTotals returns the sums by key.
func checkTotals(totals []*plusonev1.ImportTotal, v *violations) []counter.Entry {
	entries := make([]*plusonev1.BatchEntry, len(totals))
	for i, total := range totals {
		if v.full() {
			return nil
		}
		if problem := textProblem(total.GetKey(), counter.MaxKeyBytes); problem != "" {
			v.add("totals", indexed("totals", i)+".key", problem)
		}
		if total.GetDelta() == 0 {
			v.add("totals", indexed("totals", i)+".delta", "must not be 0")
		}
		entries[i] = &plusonev1.BatchEntry{Key: total.GetKey(), Delta: total.GetDelta()}
	}
	sums, overflowing := sumEntries(entries)
	if overflowing >= 0 {
		v.add("totals", indexed("totals", overflowing)+".delta", "overflows the sum of the key's totals")
	}
	return sums
}

func checkImportLikes(likes []*plusonev1.ImportLike, now time.Time, v *violations) []counter.DatedLike {
	dated := make([]counter.DatedLike, len(likes))
	seen := make(map[counter.Pair]struct{}, len(likes))
	for i, like := range likes {
		if v.full() {
			return nil
		}
		field := indexed("likes", i)
		pair := counter.Pair{Key: like.GetKey(), Actor: like.GetActor()}
		if problem := textProblem(pair.Key, counter.MaxKeyBytes); problem != "" {
			v.add("likes", field+".key", problem)
		}
		if problem := textProblem(pair.Actor, counter.MaxActorBytes); problem != "" {
			v.add("likes", field+".actor", problem)
		}
		if _, twice := seen[pair]; twice {
			v.add("likes", field, "is of the same key and actor as one before it")
		}
		seen[pair] = struct{}{}
		dated[i] = counter.DatedLike{Pair: pair, Liked: true, Micros: checkLikedAt(like.GetLikedAt(), now, field, v)}
	}
	return dated
}

// checkLikedAt returns the moment in Unix microseconds, 0 if none is given.
func checkLikedAt(likedAt *timestamppb.Timestamp, now time.Time, field string, v *violations) int64 {
	switch {
	case likedAt == nil:
		return 0
	case !likedAt.IsValid():
		v.add("likes", field+".liked_at", "must be a valid timestamp")
	case likedAt.AsTime().After(now.Add(maxAhead)):
		v.add("likes", field+".liked_at", "must not be in the future")
	case likedAt.AsTime().UnixMicro() < 1:
		v.add("likes", field+".liked_at", "must be after the beginning of 1970")
	default:
		return likedAt.AsTime().UnixMicro()
	}
	return 0
}
