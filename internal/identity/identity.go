// Package identity says who calls: what a token, or a certificate, stands for.
package identity

import (
	"context"
	"strings"
)

// Scope is a set of what an identity may do.
type Scope uint8

// The scopes.
const (
	// Read: read counters and likes of the live store.
	Read Scope = 1 << iota
	// Write: change counters and likes.
	Write
	// Report: read what the ledger lists.
	Report
	// Admin: call AdminService.
	Admin
)

// Identity is who calls. It does not change once it is made, so that calls can share it.
type Identity struct {
	// Name tells identities apart, for limits and logs.
	Name string
	// Personal says that the name has an actor's id in it, so that no log may have it above level debug but that of audits.
	Personal bool
	// Scopes are what it may do.
	Scopes Scope
	// Namespaces are patterns of the namespaces that it may touch: a name, a name's beginning and a *, or * for all.
	Namespaces []string
	// Actor, if it is not empty, is the only one that it may act for. Otherwise it acts for anyone.
	Actor string
}

// May reports whether the identity has all of the scopes.
func (i *Identity) May(scopes Scope) bool { return i.Scopes&scopes == scopes }

// Touches reports whether the identity may touch a namespace.
func (i *Identity) Touches(namespace string) bool {
	for _, pattern := range i.Namespaces {
		start, open := strings.CutSuffix(pattern, "*")
		if pattern == namespace || open && strings.HasPrefix(namespace, start) {
			return true
		}
	}
	return false
}

type contextKey struct{}

// NewContext returns a context of a call by who.
func NewContext(ctx context.Context, who *Identity) context.Context {
	return context.WithValue(ctx, contextKey{}, who)
}

// FromContext returns who calls, or nil if calls are not authenticated.
func FromContext(ctx context.Context) *Identity {
	who, _ := ctx.Value(contextKey{}).(*Identity)
	return who
}
