package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deadline"
	"github.com/plusone-dev/plusone/internal/guard"
	"github.com/plusone-dev/plusone/internal/identity"
	"github.com/plusone-dev/plusone/internal/limit"
	"github.com/plusone-dev/plusone/internal/policy"
)

// Policies say what may count. They may change at any time.
type Policies interface {
	// Of returns the policy of a namespace.
	Of(namespace string) *policy.Policy
}

// Limiter gives out tokens.
type Limiter interface {
	// Take takes tokens from all of the buckets, which are distinct, or from none if one of them lacks some. It returns
	// soon after ctx ends. Errors are those of a store that refuses.
	Take(ctx context.Context, wants []limit.Want) (limit.Verdict, error)
}

// TicketLimiter is a Limiter that can also leave it to the store to take tokens, together with those of other changes.
type TicketLimiter interface {
	Limiter
	// Ticket makes a ticket for tokens of all of the buckets, or refuses what is known to lack some.
	Ticket(wants []limit.Want) (*limit.Ticket, limit.Verdict)
}

// DenyList knows actors whose changes must not count.
type DenyList interface {
	Denied(actor string) bool
}

// gate decides whether a change that is well formed may count. It asks what is cheap and needs no one else first: the policy
// of the namespace, then the deny list, so that who is on it uses up nobody's tokens, then the limits, and the guard last,
// so that it is asked no more often than the limits allow. A nil gate lets everything in.
type gate struct {
	policies  Policies // nil if there are none, and then neither limits nor guard
	limiter   Limiter
	tickets   TicketLimiter // nil if the store redeems none
	denied    DenyList      // may be nil
	guard     guard.Guard
	timeout   time.Duration
	deadlines *deadline.Timers
	metrics   *metrics
	decisions *gateMetrics
}

// newGate returns nil if there is nothing to ask.
func newGate(config Config, m *metrics, deadlines *deadline.Timers) (*gate, error) {
	if config.Policies == nil && config.Denied == nil {
		return nil, nil
	}
	g := &gate{
		policies: config.Policies, limiter: config.Limiter, denied: config.Denied, guard: config.Guard,
		timeout: config.RequestTimeout, deadlines: deadlines, metrics: m, decisions: newGateMetrics(),
	}
	if config.Tickets {
		g.tickets, _ = config.Limiter.(TicketLimiter)
	}
	return g, g.decisions.register(config.Registry)
}

// The methods by which a change of one key is made, as a guard knows them.
const (
	methodIncrement = "Increment"
	methodLike      = "Like"
	methodUnlike    = "Unlike"
)

// change is asked about a change of one key. It completes the change, since a policy may say how often an actor counts.
func (g *gate) change(ctx context.Context, c *counter.Change, by string) error {
	if g == nil {
		return nil
	}
	var p *policy.Policy
	namespace := counter.Namespace(c.Entries[0].Key)
	if g.policies != nil {
		p = g.policies.Of(namespace)
		if err := g.permit(c, p); err != nil {
			return err
		}
		if c.OncePer == 0 && c.Actor != "" && by == methodIncrement && p.OncePer > 0 {
			c.OncePer, c.ImpliedOncePer = p.OncePer, true
		}
	}
	// An unlike takes away what the actor has added.
	if g.denied != nil && c.Actor != "" && by != methodUnlike && g.denied.Denied(c.Actor) {
		return g.refuse(statusActorBlocked)
	}
	if p == nil || !p.Limits() && !p.Guard {
		return nil
	}
	if g.tickets != nil && by == methodIncrement && !p.Guard {
		return g.ticket(c, wantsOf(ctx, c, p))
	}
	within := g.deadlines.Within(ctx, g.timeout)
	defer within.Release()
	if p.Limits() {
		if err := g.limit(ctx, within, wantsOf(ctx, c, p)); err != nil {
			return err
		}
	}
	if !p.Guard {
		return nil
	}
	return g.ask(ctx, within, guard.Question{
		Method: by, Caller: callerOf(ctx), Actor: c.Actor, Namespace: namespace, Token: guardToken(ctx),
	})
}

// permit compares a change with the policy of its namespace.
func (g *gate) permit(c *counter.Change, p *policy.Policy) error {
	isLike := c.Like != counter.NoLike
	switch {
	case isLike && !p.Likes:
		return g.refuse(statusLikesDenied)
	case !isLike && !p.Increments:
		return g.refuse(statusIncrementsDenied)
	case c.Actor == "" && p.NamesActor():
		return g.refuse(statusAnonymousDenied)
	case p.DedupeWindow > 0 && isOlder(c.RequestID, p.DedupeWindow):
		return g.refuse(statusExpired)
	}
	if p.MaxDelta > 0 && !isLike {
		if problem := deltaProblem(c.Entries[0].Delta, p.MaxDelta); problem != "" {
			var v violations
			v.add("delta", "delta", problem)
			return g.metrics.refuse(&v)
		}
	}
	return nil
}

// isOlder reports whether an id says that it was made longer ago than a window, by the clock of this server.
func isOlder(id counter.RequestID, window time.Duration) bool {
	made, timed := id.Time()
	return timed && time.Since(time.UnixMilli(made)) > window
}

// wantsOf are the tokens that a change of one key takes.
func wantsOf(ctx context.Context, c *counter.Change, p *policy.Policy) []limit.Want {
	wants := make([]limit.Want, 0, 3)
	if l := p.ActorKey; l != nil && c.Actor != "" {
		wants = append(wants, limit.Want{
			Kind: limit.ActorKey, Scope: l.Buckets, Who: c.Actor, Key: c.Entries[0].Key, Rate: l.Rate, Cost: 1,
		})
	}
	if l := p.Actor; l != nil && c.Actor != "" {
		wants = append(wants, limit.Want{Kind: limit.Actor, Scope: l.Buckets, Who: c.Actor, Rate: l.Rate, Cost: 1})
	}
	if l := p.Caller; l != nil {
		wants = append(wants, limit.Want{Kind: limit.Caller, Scope: l.Buckets, Who: callerOf(ctx), Rate: l.Rate, Cost: 1})
	}
	return wants
}

// callerOf is the name of who calls. Without authentication all are one.
func callerOf(ctx context.Context) string {
	if who := identity.FromContext(ctx); who != nil {
		return who.Name
	}
	return ""
}

// limit takes tokens. ctx is the caller's, within what is left of it.
func (g *gate) limit(ctx, within context.Context, wants []limit.Want) error {
	if len(wants) == 0 {
		return nil
	}
	verdict, err := g.limiter.Take(within, wants)
	if err != nil {
		g.decisions.failed(wants)
		return readError(ctx, err) // which leaves nothing in doubt either
	}
	g.decisions.decided(wants, verdict)
	return g.rateLimited(wants, verdict)
}

// rateLimited refuses what a verdict does not allow.
func (g *gate) rateLimited(wants []limit.Want, verdict limit.Verdict) error {
	if verdict.Allowed {
		return nil
	}
	g.decisions.refused[reasonRateLimited].Inc()
	return &rpcError{status: rateLimited(wants[verdict.Lacking].Kind.String(), verdict.Wait), cause: errRateLimited}
}

// ticket gives a change a ticket for its tokens, which is settled when the store has answered.
func (g *gate) ticket(c *counter.Change, wants []limit.Want) error {
	if len(wants) == 0 {
		return nil
	}
	t, verdict := g.tickets.Ticket(wants)
	if !verdict.Allowed {
		g.decisions.decided(wants, verdict)
		return g.rateLimited(wants, verdict)
	}
	c.Ticket = t
	return nil
}

// settle is called with the ticket of a change and the error of the store, and returns the error of the limits, if it is
// theirs.
func (g *gate) settle(ctx context.Context, ticket counter.Ticket, err error) error {
	t, ok := ticket.(*limit.Ticket)
	if !ok {
		return nil
	}
	verdict, redeemed, failure := t.Verdict()
	switch {
	case failure != nil:
		g.decisions.failed(t.Wants())
		return readError(ctx, failure) // which leaves nothing in doubt either
	case redeemed:
		g.decisions.decided(t.Wants(), verdict)
		return g.rateLimited(t.Wants(), verdict)
	case err != nil:
		g.decisions.failed(t.Wants())
	}
	return nil
}

// ask asks the guard. The contexts are those of limit.
func (g *gate) ask(ctx, within context.Context, q guard.Question) error {
	if g.guard == nil {
		return g.refuse(statusGuardUnavailable)
	}
	decision, err := g.guard.Check(within, q)
	switch {
	case err != nil:
		g.decisions.refused[reasonGuardUnavailable].Inc()
		return guardError(ctx, err)
	case decision.Allowed:
		return nil
	default:
		g.decisions.refused[reasonGuardDenied].Inc()
		return &rpcError{status: guardDenied(decision.Reason)}
	}
}

// guardToken is what the caller hands on to the guard.
func guardToken(ctx context.Context) string {
	if values := metadata.ValueFromIncomingContext(ctx, guard.TokenHeader); len(values) > 0 {
		return values[0]
	}
	return ""
}

// batch is asked about a batch, whose entries are those of the request. A batch names no actor: an identity that is bound to
// one must not use it to get past what holds for him, so only his deny list and his limit are looked at, and where an actor
// must be named no batch is taken.
func (g *gate) batch(ctx context.Context, entries []*plusonev1.BatchEntry, c *counter.Change) error {
	if g == nil {
		return nil
	}
	actor := ""
	if who := identity.FromContext(ctx); who != nil {
		actor = who.Actor
	}
	sizes, err := g.permitBatch(entries, c)
	if err != nil {
		return err
	}
	if g.denied != nil && actor != "" && g.denied.Denied(actor) {
		return g.refuse(statusActorBlocked)
	}
	wants := batchWants(sizes, actor, callerOf(ctx))
	if len(wants) == 0 {
		return nil
	}
	within := g.deadlines.Within(ctx, g.timeout)
	defer within.Release()
	return g.limit(ctx, within, wants)
}

// permitBatch compares a batch with the policies of its namespaces, and returns how many entries each of them has.
func (g *gate) permitBatch(entries []*plusonev1.BatchEntry, c *counter.Change) (map[*policy.Policy]int64, error) {
	if g.policies == nil {
		return nil, nil
	}
	sizes := make(map[*policy.Policy]int64, 1)
	var v violations
	var p *policy.Policy
	start, size := "", int64(0) // of the entries in a row that have the same namespace
	for i, e := range entries {
		key := e.GetKey()
		if p == nil || start == "" || !strings.HasPrefix(key, start) {
			if p != nil {
				sizes[p] += size
			}
			namespace := counter.Namespace(key)
			p, size = g.policies.Of(namespace), 0
			start = key[:min(len(namespace)+1, len(key))]
			if namespace == "" {
				start = "" // no other key begins so
			}
			if st := batchRefusal(p, c); st != nil {
				return nil, g.refuse(st)
			}
		}
		size++
		if p.MaxDelta > 0 && !v.full() {
			if problem := deltaProblem(e.GetDelta(), p.MaxDelta); problem != "" {
				v.add("entries", indexed("entries", i)+".delta", problem)
			}
		}
	}
	sizes[p] += size
	return sizes, g.metrics.refuse(&v)
}

// batchRefusal is why a policy takes no batch, or nil.
func batchRefusal(p *policy.Policy, c *counter.Change) *status.Status {
	switch {
	case !p.Increments:
		return statusIncrementsDenied
	case p.NamesActor():
		return statusAnonymousDenied
	case p.DedupeWindow > 0 && isOlder(c.RequestID, p.DedupeWindow):
		return statusExpired
	}
	return nil
}

// batchWants are the tokens that a batch takes: as many as it has entries. Those of actors come first.
func batchWants(sizes map[*policy.Policy]int64, actor, caller string) []limit.Want {
	var wants []limit.Want
	add := func(kind limit.Kind, who string, l *policy.Limit, cost int64) {
		if l == nil {
			return
		}
		for i := range wants { // policies share the limits of the default
			if wants[i].Kind == kind && wants[i].Scope == l.Buckets {
				wants[i].Cost += cost
				return
			}
		}
		wants = append(wants, limit.Want{Kind: kind, Scope: l.Buckets, Who: who, Rate: l.Rate, Cost: cost})
	}
	if actor != "" {
		for p, size := range sizes {
			add(limit.Actor, actor, p.Actor, size)
		}
	}
	for p, size := range sizes {
		add(limit.Caller, caller, p.Caller, size)
	}
	return wants
}

// refuse counts a refusal.
func (g *gate) refuse(st *status.Status) error {
	g.decisions.refuse(st)
	return &rpcError{status: st}
}

// guardError maps the error of a guard. ctx is the caller's.
func guardError(ctx context.Context, err error) error {
	st := callerStatus(ctx)
	if st == nil {
		st = statusGuardUnavailable
	}
	return &rpcError{status: st, cause: fmt.Errorf("guard: %w", err)}
}
