package main

import (
	"context"
	"fmt"
	"time"

	"github.com/plusone-dev/plusone/internal/auth"
)

// tokenCommand draws a token.
type tokenCommand struct {
	Name       string    `arg:"" help:"Name of the caller, for limits and logs."`
	Scopes     []string  `default:"read,write" help:"What it may do: of read, write, report, admin."`
	Namespaces []string  `required:"" placeholder:"PATTERN" help:"What it may touch: names of namespaces, beginnings of names and a *, or * for everything."`
	Actor      string    `placeholder:"TEXT" help:"The only actor that it may act for. By default it acts for anyone."`
	Expires    time.Time `placeholder:"TIME" help:"When it is refused from, as 2027-01-31T00:00:00Z. By default never."`
}

// run prints the token, which is nowhere else, and its entry in the file of --tokens-file.
func (c *tokenCommand) run(_ context.Context, env environment) error {
	caller := auth.Caller{Name: c.Name, Scopes: c.Scopes, Namespaces: c.Namespaces, Actor: c.Actor, Expires: c.Expires}
	token := auth.NewToken(&caller)
	entry, err := caller.Entry()
	if err != nil {
		return &usageError{err.Error()}
	}
	_, err = fmt.Fprintf(env.stdout, "%s\n\n# The token stands above, and nowhere else. For the list of callers in the file of --tokens-file:\n%s", token, entry)
	return err
}
