package shard

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/redis/rueidis"
)

// script is a Lua script with the libraries it uses.
type script struct{ body, sha string }

// commander is a client, or one connection of it.
type commander interface {
	B() rueidis.Builder
	Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult
}

// loadScript assembles a script from its files, in their order: the libraries it uses, and its own, which come last as a
// rule. A first line "#!…", which sets the script's flags, goes first.
func loadScript(files ...string) (*script, error) {
	var flags string
	var body strings.Builder
	for _, name := range files {
		file, err := scriptFiles.ReadFile("scripts/" + name + ".lua")
		if err != nil {
			return nil, fmt.Errorf("script %s: %w", name, err)
		}
		text := string(file)
		if strings.HasPrefix(text, "#!") {
			first, rest, _ := strings.Cut(text, "\n")
			flags, text = first+"\n", rest
		}
		body.WriteString(text)
	}
	text := flags + body.String()
	sum := sha1.Sum([]byte(text))
	return &script{body: text, sha: hex.EncodeToString(sum[:])}, nil
}

// exec runs the script by its hash, and by its text if Redis does not have it. It is not run inside MULTI,
// which some managed Redis refuse. An answer that is lost is not asked for again.
func (s *script) exec(ctx context.Context, c commander, keys, args []string) rueidis.RedisResult {
	result := c.Do(ctx, s.byHash(c, keys, args))
	if isUnknown(result) {
		return c.Do(ctx, s.byText(c, keys, args))
	}
	return result
}

func (s *script) byHash(c commander, keys, args []string) rueidis.Completed {
	return c.B().Evalsha().Sha1(s.sha).Numkeys(int64(len(keys))).Key(keys...).Arg(args...).Build()
}

func (s *script) byText(c commander, keys, args []string) rueidis.Completed {
	return c.B().Eval().Script(s.body).Numkeys(int64(len(keys))).Key(keys...).Arg(args...).Build()
}

// isUnknown reports whether a script was not run, because Redis does not have it.
func isUnknown(result rueidis.RedisResult) bool {
	reply, ok := rueidis.IsRedisErr(result.Error())
	return ok && reply.IsNoScript()
}
