package chaos_test

import (
	"slices"
	"testing"

	"github.com/plusone-dev/plusone/internal/plusonetest"
)

// plantedBug is a mistake that somebody could make, put into the program to see that it is found. The program starts and
// counts with it as long as nothing goes wrong.
type plantedBug struct {
	name string
	// what is wrong, and when it shows.
	what string
	// modes are those in which it can show: embedded, direct, sharded.
	modes []string
	// scenario is where it is looked for, "" for that of the mode's name.
	scenario string
	replace  []plusonetest.Replacement
}

// plantedBugs are grouped by the promise that they break.
var plantedBugs = slices.Concat(bugsOfDirectModes, bugsOfWrites, bugsOfTheFlush, bugsOfReads, bugsOfRollbacks, bugsOfLikes)

// The first is one that shows soon, as a short run has the first of each mode alone.
var bugsOfDirectModes = []plantedBug{
	{
		name:  "sqlite does not look up request ids",
		what:  "A retry after a commit whose answer was lost counts again.",
		modes: []string{"embedded"},
		replace: []plusonetest.Replacement{
			{
				File: "flush/sqlite_commit.go",
				Old:  "held.ids[claimID(row.blob(0))] = keptID{",
				New:  "_ = keptID{",
			},
			{File: "flush/sqlite_commit.go", Old: "INSERT OR FAIL INTO request_ids", New: "INSERT OR REPLACE INTO request_ids"},
		},
	},
	{
		name:  "sqlite answers before the commit",
		what:  "Callers hear of a change as soon as it is decided, and reads wait for the commit. A kill in between loses it.",
		modes: []string{"embedded"},
		replace: []plusonetest.Replacement{
			{
				File: "flush/sqlite_commit.go",
				Old:  `	err := s.update(ctx, "commit", func(ctx context.Context, w *sqliteWriter) error {`,
				New: `	decided := make(chan error, 2)
	commit := func(ctx context.Context, w *sqliteWriter) error {`,
			},
			{
				File: "flush/sqlite_commit.go",
				Old: `		failpoint.Hit(failpoint.DirectCommitBefore)
		return nil
	})
	if err != nil {
		return nil, time.Time{}, err
	}
`,
				New: `		decided <- nil
		failpoint.Hit(failpoint.DirectCommitBefore)
		return nil
	}
	go func() { decided <- s.update(context.WithoutCancel(ctx), "commit", commit) }()
	if err := <-decided; err != nil {
		return nil, time.Time{}, err
	}
`,
			},
			{
				File: "flush/sqlite_commit.go",
				Old: `	// Taken before the snapshot.
`,
				New: `	s.mu.Lock()
	defer s.mu.Unlock()
`,
			},
		},
	},
	{
		name:  "sqlite commits request ids first",
		what:  "Ids have a transaction of their own. A kill between the two makes a duplicate of a retry that was never counted.",
		modes: []string{"embedded"},
		replace: []plusonetest.Replacement{{
			File: "flush/sqlite_commit.go",
			Old:  "	if err := w.setLikes(before,",
			New: `	for _, half := range []*many{&commit, &begin} {
		if err := w.run(half); err != nil {
			return err
		}
	}
	if err := w.setLikes(before,`,
		}},
	},
	{
		name:  "postgres does not look up request ids",
		what:  "An id that is there is taken once more. A retry after a commit whose answer was lost counts again.",
		modes: []string{"direct"},
		replace: []plusonetest.Replacement{{
			File: "flush/postgres_commit.go",
			Old:  "ON CONFLICT (id) DO NOTHING RETURNING id",
			New:  "ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint RETURNING id",
		}},
	},
	{
		name:  "postgres commits request ids first",
		what:  "Ids have a transaction of their own. A kill between the two makes a duplicate of a retry that was never counted.",
		modes: []string{"direct"},
		replace: []plusonetest.Replacement{{
			File: "flush/postgres_commit.go",
			Old:  "case !plain || careful || longer:",
			New:  "case !plain || careful || longer || true:", // new ids take one statement otherwise
		}, {
			File: "flush/postgres_commit.go",
			Old:  "	claims.queueRelease(batch, g, d)",
			New: `	batch.Queue("COMMIT")
	batch.Queue(beginSQL)
	if err := tx.send(ctx, batch); err != nil {
		return nil, time.Time{}, postgresError("commit", err)
	}
	batch = &pgx.Batch{}
	claims.queueRelease(batch, g, d)`,
		}},
	},
	{
		name:  "what is in doubt is committed again",
		what:  "A change without a request id counts twice where the answer to a commit was lost.",
		modes: []string{"direct"},
		replace: []plusonetest.Replacement{{
			File: "flush/direct.go",
			Old:  "if again && (!inDoubt || !p.change.RequestID.IsZero()) {",
			New:  "if again {",
		}},
	},
}

var bugsOfWrites = []plantedBug{
	{
		name:  "redis does not keep request ids",
		what:  "The write script leaves no claims of ids. A retry at another server, after one that died before it answered, counts again.",
		modes: []string{"sharded"},
		replace: []plusonetest.Replacement{{
			File: "shard/scripts/claims.lua",
			Old:  "for g = 1, #claim_groups[s] do claim(s, claim_groups[s][g]) end",
			New: `for g = 1, #claim_groups[s] do
        if string.sub(claim_groups[s][g].name, 1, 5) == 'once:' then claim(s, claim_groups[s][g]) end
      end`,
		}},
	},
	{
		name:  "writers go on in a sealed window",
		what:  "Writers use a window for twice its length, whatever was sealed. What comes between the scan and the end is lost.",
		modes: []string{"sharded"},
		replace: []plusonetest.Replacement{{
			File: "shard/scripts/windows.lua",
			Old:  "if last > sealed and last > fin and now - last < length then",
			New:  "if last > fin and now - last < 2 * length then",
		}},
	},
}

var bugsOfTheFlush = []plantedBug{
	{
		name:  "the watermark is not checked",
		what:  "A window is applied whether or not the ledger has it: again after a worker that died between the commit and the end.",
		modes: []string{"sharded"},
		replace: []plusonetest.Replacement{
			{
				File: "flush/postgres_apply.go",
				Old: `	case w.Oldest() <= watermark:
		return Applied{Previous: watermark}, nil
`,
			},
			{File: "flush/drain.go", Old: "if d.due[0].ID <= watermark {", New: "if d.due[0].ID <= 0 {"},
		},
	},
	{
		name: "a window is taken out before it is applied",
		what: "It is deleted once it was read, as by GETDEL. A worker that dies, or a ledger that fails, before the commit loses it, and " +
			"bases cannot be loaded until another window is applied.",
		modes: []string{"sharded"},
		replace: []plusonetest.Replacement{{
			File: "flush/drain.go",
			Old:  `	s.do("apply", func`,
			New: `	for _, w := range windows {
		s.do("discard", func(ctx context.Context) error { return d.worker.scripts.Discard(ctx, d.shard, w.ID, random()) })
	}
	s.do("apply", func`,
		}},
	},
	{
		name:  "fin is set after the moves",
		what:  "A base that was read from the ledger before a window was applied, and is loaded while that is moved, lacks it.",
		modes: []string{"sharded"},
		replace: []plusonetest.Replacement{
			{
				File: "shard/scripts/begin.lua",
				Old:  "change_meta(KEYS[1], 'fin', integer(math.max(fin, window)))\n",
			},
			{File: "shard/scripts/move.lua", Old: "if meta[1] ~= ARGV[1] or not redis.call", New: "if not redis.call"},
			{File: "shard/scripts/end.lua", Old: "redis.call('HGET', KEYS[1], 'fin') ~= ARGV[1] or ", New: ""},
			{
				File: "shard/scripts/end.lua",
				Old:  "return redis.call('LREM'",
				New:  "change_meta(KEYS[1], 'fin', ARGV[1])\nreturn redis.call('LREM'",
			},
		},
	},
	{
		name:  "a delta is in the base and in the window",
		what:  "It is added to the base by one script and leaves the window by another. A read in between counts it twice.",
		modes: []string{"sharded"},
		replace: []plusonetest.Replacement{
			{
				File: "shard/scripts/move.lua",
				Old:  "  redis.call('HDEL', window_key, unpack(keys))\n",
			},
			{
				File: "shard/scripts/end.lua",
				Old:  " or redis.call('HLEN', window_key) ~= tonumber(ARGV[2]) then return 0 end",
				New:  " then return 0 end",
			},
		},
	},
	{
		name:  "discard begins no generation",
		what:  "After a worker that died between the commit and the end, cached bases lack what the window had.",
		modes: []string{"sharded"},
		replace: []plusonetest.Replacement{{
			File: "shard/scripts/discard.lua",
			Old:  "'gen', ARGV[2], ",
		}},
	},
}

var bugsOfReads = []plantedBug{
	{
		name:  "a load does not take away what is pending",
		what:  "A base that is loaded after a window was applied and before it is moved counts it twice.",
		modes: []string{"sharded"},
		replace: []plusonetest.Replacement{{
			File: "shard/scripts/load.lua",
			Old:  "local applied = applied_windows(prefix, watermark)",
			New:  "local applied = {}",
		}},
	},
	{
		name:  "a load does not look at fin",
		what:  "A base that was read from the ledger before a window was applied, and is loaded after that was moved, lacks it.",
		modes: []string{"sharded"},
		replace: []plusonetest.Replacement{{
			File: "shard/scripts/load.lua",
			Old:  "if tonumber(meta[1] or 0) > watermark then return 0 end\n",
		}},
	},
	{
		name:  "a read makes up a number",
		what:  "A fresh read whose base cannot be loaded, since Postgres is down, answers as if the ledger had nothing.",
		modes: []string{"sharded"},
		replace: []plusonetest.Replacement{{
			File: "shard/counts.go",
			Old: `		if err := failed[reads[i].key]; err != nil {
			reads[i].fail(err)
		}
`,
			New: `		if failed[reads[i].key] != nil {
			reads[i].left, reads[i].micros = nil, asked.UnixMicro()
		}
`,
		}},
	},
}

var bugsOfRollbacks = []plantedBug{
	{
		name:     "a rollback of redis is not noticed",
		scenario: "rollback",
		what:     "Bases of the past live on in a Redis that went back to before a change that was drained, and ids of the past count again.",
		modes:    []string{"sharded"},
		replace: []plusonetest.Replacement{
			{
				File: "shard/scripts/seal.lua",
				Old: `local rolled_back = watermark > fin and not applied
  or watermark > 0 and watermark >= fin and redis.call('HGET', tokens_key, ARGV[1]) ~= token
`,
				New: "local rolled_back = false\n",
			},
			{File: "shard/scripts/begin.lua", Old: "local rolled_back = stale or fin ~= previous", New: "local rolled_back = stale"},
		},
	},
}

var bugsOfLikes = []plantedBug{
	{
		name:  "the ledger counts a repeated like",
		what:  "A like that Redis took for a change, since it had forgotten the pair or Postgres was down, counts though the ledger had it.",
		modes: []string{"sharded"},
		replace: []plusonetest.Replacement{{
			File: "flush/postgres_likes.go",
			Old:  "case liked && !was:",
			New:  "case liked:",
		}},
	},
}

// Each mistake still has its place in the program.
func TestPlantedBugsFit(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, bug := range plantedBugs {
		if err := plusonetest.Check(bug.replace); err != nil {
			t.Errorf("%s: %v", bug.name, err)
		}
		if names[bug.name] {
			t.Errorf("%s is there twice", bug.name)
		}
		names[bug.name] = true
	}
}
