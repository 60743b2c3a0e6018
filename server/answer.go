package server

import (
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// answer is a response, encoded once: the codec sends it as it is, however many calls it answers. To encode it for each of
// them took more than all else that is done for a read from the cache. Several calls may send it at once, and nobody changes it.
type answer struct {
	encoded mem.SliceBuffer
	buffers [1]mem.Buffer // encoded, in the form that gRPC wants
}

// answers are GetResponses that make a BatchGetResponse. Both have counts as field 1 and nothing else, and by the rules of
// protobuf one such message behind the other is the message of both their counts, in their order.
type answers []*answer

// answerMessage is the message of an answer while that is encoded. It is used again for others.
type answerMessage struct {
	response plusonev1.GetResponse
	count    plusonev1.Count
	asOf     timestamppb.Timestamp
}

var answerMessages sync.Pool

// encodeCount makes the answer a GetResponse with a count. It fails if the key is not UTF-8, which the checks of requests see to.
func (a *answer) encodeCount(c *counter.Count, stale bool) error {
	m, ok := answerMessages.Get().(*answerMessage)
	if !ok {
		m = &answerMessage{}
		m.response.Count, m.count.AsOf = &m.count, &m.asOf
	}
	defer answerMessages.Put(m)
	m.count.Key, m.count.Count, m.count.Likes, m.count.Stale = c.Key, c.Value, c.Likes, stale
	m.asOf.Seconds, m.asOf.Nanos = c.AsOf.Unix(), int32(c.AsOf.Nanosecond())
	return a.encode(&m.response)
}

// encode makes the answer a message.
func (a *answer) encode(m proto.Message) error {
	encoded, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	a.encoded = encoded
	a.buffers[0] = &a.encoded
	return nil
}

// join puts the answers together.
func (b answers) join() mem.BufferSlice {
	size := 0
	for _, a := range b {
		size += len(a.encoded)
	}
	pool := mem.DefaultBufferPool()
	buffer := pool.Get(size)
	joined := (*buffer)[:0]
	for _, a := range b {
		joined = append(joined, a.encoded...)
	}
	return mem.BufferSlice{mem.NewBuffer(buffer, pool)}
}

// facts are what an answer to a change tells.
type facts interface {
	comparable
	message() proto.Message
}

// changeAnswers answer changes. All that one batch has settled are told the same as a rule, so the last answer is kept.
type changeAnswers[Facts facts] struct {
	last atomic.Pointer[changeAnswer[Facts]]
}

type changeAnswer[Facts facts] struct {
	answer
	facts Facts
}

// of returns the answer that tells the facts.
func (c *changeAnswers[Facts]) of(f Facts) (*answer, error) {
	if last := c.last.Load(); last != nil && last.facts == f {
		return &last.answer, nil
	}
	a := &changeAnswer[Facts]{facts: f}
	if err := a.encode(f.message()); err != nil {
		return nil, err
	}
	c.last.Store(a)
	return &a.answer, nil
}

// incrementFacts are those of an IncrementResponse.
type incrementFacts struct {
	outcome plusonev1.Outcome
	asOf    time.Time
}

func (f incrementFacts) message() proto.Message {
	return &plusonev1.IncrementResponse{Outcome: f.outcome, AsOf: timestamppb.New(f.asOf)}
}

// likeFacts are those of a LikeResponse, and of an UnlikeResponse, which has the same fields.
type likeFacts struct {
	changed     bool
	counted     bool // or the count cannot be told now
	count       int64
	asOf        time.Time
	provisional bool
}

func (f likeFacts) message() proto.Message {
	m := &plusonev1.LikeResponse{Changed: f.changed, AsOf: timestamppb.New(f.asOf), Provisional: f.provisional}
	if f.counted {
		m.Count = &f.count
	}
	return m
}
