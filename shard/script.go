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

// loadScript assembles a script from its file and its libraries. A first line "#!…", which sets the script's
// flags, stays first.
func loadScript(name string, libs ...string) (*script, error) {
	var body strings.Builder
	main, err := scriptFiles.ReadFile("scripts/" + name + ".lua")
	if err != nil {
		return nil, fmt.Errorf("script %s: %w", name, err)
	}
	text := string(main)
	if strings.HasPrefix(text, "#!") {
		flags, rest, _ := strings.Cut(text, "\n")
		body.WriteString(flags + "\n")
		text = rest
	}
	for _, lib := range libs {
		file, err := scriptFiles.ReadFile("scripts/" + lib + ".lua")
		if err != nil {
			return nil, fmt.Errorf("script %s: %w", name, err)
		}
		body.Write(file)
	}
	body.WriteString(text)
	sum := sha1.Sum([]byte(body.String()))
	return &script{body: body.String(), sha: hex.EncodeToString(sum[:])}, nil
}

// exec runs the script by its hash, and by its text if Redis does not have it. It is not run inside MULTI,
// which some managed Redis refuse. An answer that is lost is not asked for again.
func (s *script) exec(ctx context.Context, c commander, keys, args []string) rueidis.RedisResult {
	n := int64(len(keys))
	result := c.Do(ctx, c.B().Evalsha().Sha1(s.sha).Numkeys(n).Key(keys...).Arg(args...).Build())
	if reply, ok := rueidis.IsRedisErr(result.Error()); ok && reply.IsNoScript() {
		return c.Do(ctx, c.B().Eval().Script(s.body).Numkeys(n).Key(keys...).Arg(args...).Build())
	}
	return result
}
