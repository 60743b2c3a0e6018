package main_test

import (
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/redistest"
)

// Exit codes.
const (
	failed = 1
	misuse = 2
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	const postgres, redis = "--postgres-url=postgres://127.0.0.1:1/x", "--redis-url=redis://127.0.0.1:1"
	for _, test := range []struct {
		args string
		env  string
		want string
	}{
		{args: "", want: `expected one of "serve"`},
		{args: "serve " + redis, want: "--redis-url needs --postgres-url"},
		{args: "flush " + redis, want: "--redis-url needs --postgres-url"},
		{args: "flush", want: "flush is for sharded mode, which --redis-url and --postgres-url choose; in embedded mode"},
		{args: "flush " + postgres, want: "in direct mode"},
		{args: "serve --flush=false", want: "--flush has no effect in embedded mode"},
		{args: "serve --flush-interval=1s " + postgres, want: "--flush-interval has no effect in direct mode"},
		{args: "serve", env: "PLUSONE_SHARDS=4", want: "--shards has no effect in embedded mode"},
		{args: "serve --data=x.db " + postgres, want: "--data has no effect in direct mode"},
		{args: "serve --grpc-addr=0.0.0.0:0", want: "there is no TLS (--tls-cert, --tls-key) and no authentication"},
		{args: "serve --grpc-addr=0.0.0.0:0 --tls-cert=x --tls-key=x", want: "there is no authentication"},
		{args: "serve --grpc-addr=0.0.0.0:0 --tokens-file=x", want: "there is no TLS"},
		{args: "serve --tls-cert=x", want: "--tls-cert and --tls-key are of use only together"},
		{args: "serve --tls-client-ca=x", want: "--tls-client-ca needs --tls-cert"},
		{args: "serve --jwt-jwks=x --jwt-issuer=x", want: "JWTs need --jwt-issuer and --jwt-audience"},
		{args: "serve --jwt-jwks=http://x", want: "must be a file or an https URL"},
		{args: "serve --jwt-audience=x", want: "--jwt-audience has no effect"},
		{args: "serve --jwt-leeway=1s", want: "--jwt-leeway has no effect"},
		{args: "serve --jwt-leeway=1h --jwt-jwks=x --jwt-issuer=x --jwt-audience=x", want: "--jwt-leeway is 1h"},
		{args: "serve", env: "PLUSONE_HEALTH_PUBLIC=false", want: "--health-public has no effect"},
		{args: "serve --reflection=maybe", want: "--reflection must be one of"},
		{args: "serve --max-connections=0", want: "--max-connections is 0"},
		{args: "serve --admin-addr=0.0.0.0:0 --insecure", want: "--admin-addr 0.0.0.0:0 is not a loopback address"},
		{args: "token web", want: "missing flags: --namespaces"},
		{args: "token web --namespaces=a/b", want: "namespaces must be"},
		{args: "token web --namespaces=* --scopes=all", want: "scopes must be of read, write"},
		{args: "token jwt:web --namespaces=*", want: "name must not begin with jwt:"},
		{args: "serve --http-addr=:0", want: "set --insecure"},
		{args: "serve --grpc-addr=nonsense", want: "--grpc-addr: address nonsense"},
		{args: "serve --max-delta=0", want: "--max-delta is 0, and must be from 1"},
		{args: "serve --request-timeout=0s", want: "--request-timeout is 0s"},
		{args: "serve --cache-bytes=1", want: "--cache-bytes is 1"},
		{args: "serve --max-in-flight=0", want: "--max-in-flight is 0"},
		{args: "serve --shutdown-timeout=0s", want: "--shutdown-timeout is 0s"},
		{args: "serve --dedupe-window=1s", want: "--dedupe-window is 1s"},
		{args: "serve --dedupe-window=10.0001s", want: "--dedupe-window is 10.0001s, and must be in whole milliseconds"},
		{args: "serve --history=day", want: `--history must be one of "hour","minute","none"`},
		{args: "serve --log-format=xml", want: "--log-format must be one of"},
		{args: "serve --log-level=loud", want: "--log-level"},
		{args: "serve --postgres-max-conns=1 " + postgres, want: "--postgres-max-conns is 1"},
		{args: "serve --shards=0 " + postgres + " " + redis, want: "--shards is 0"},
		{args: "serve --window=1ms " + postgres + " " + redis, want: "--window is 1ms"},
		{args: "serve --hot-threshold=-1 " + postgres + " " + redis, want: "--hot-threshold is -1"},
		{args: "serve --max-spread-keys=-1 " + postgres + " " + redis, want: "--max-spread-keys is -1"},
		{args: "serve --base-ttl=0s " + postgres + " " + redis, want: "--base-ttl is 0s"},
		{args: "serve --missing-ttl=0s " + postgres + " " + redis, want: "--missing-ttl is 0s"},
		{args: "serve --redis-wait-replicas=-1 " + postgres + " " + redis, want: "--redis-wait-replicas is -1"},
		{args: "serve --redis-wait-timeout=1s " + postgres + " " + redis, want: "--redis-wait-timeout is 1s"},
		{args: "serve --flush-interval=0s " + postgres + " " + redis, want: "--flush-interval is 0s"},
		{args: "serve --deny-redis-key=plusone:denied", want: "--deny-redis-key has no effect in embedded mode"},
		{args: "serve --deny-redis-key=plusone:{0}:meta " + postgres + " " + redis, want: "must not begin as the keys of counts do"},
		{args: "policy", want: `expected "check"`},
		{args: "policy check", want: `expected "<file>"`},
		{args: "policy check --max-delta=0 x.yaml", want: "--max-delta is 0"},
		{args: "migrate --http-addr=127.0.0.1:0", want: "unknown flag --http-addr"},
	} {
		t.Run(test.args+test.env, func(t *testing.T) {
			t.Parallel()
			output, code := execute(t, strings.Fields(test.env), strings.Fields(test.args)...)
			if code != misuse || !strings.Contains(output, test.want) {
				t.Errorf("exit code %d, want %d; output lacks %q:\n%s", code, misuse, test.want, output)
			}
		})
	}
}

// Off loopback a server listens if it is told twice.
func TestInsecure(t *testing.T) {
	t.Parallel()
	s := launch(t, "serve", "--grpc-addr=0.0.0.0:0", "--insecure", "--data="+filepath.Join(t.TempDir(), "plusone.db"))
	s.WaitReady()
}

func TestSettingsMismatch(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	migrate := append([]string{"migrate"}, shardedArgs(redis.URL(), pgtest.NewDatabase(t))...)
	migrate = without(migrate, "--postgres-max-conns", "--flush-interval")
	if output, code := execute(t, nil, migrate...); code != 0 {
		t.Fatalf("migrate: exit code %d:\n%s", code, output)
	}
	serve := append([]string{"serve", "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0"}, migrate[1:]...)
	for _, test := range []struct{ args, want string }{
		{"--shards=8", "created with shards 4"},
		{"--window=300ms", "created with window 200ms"},
		{"--dedupe-window=1m", "created with dedupe-window 5m0s"},
	} {
		output, code := execute(t, nil, append(serve, test.args)...)
		if code != failed || !strings.Contains(output, test.want) {
			t.Errorf("%s: exit code %d, want %d; output lacks %q:\n%s", test.args, code, failed, test.want, output)
		}
	}
	direct := without(serve, "--redis-url", "--shards", "--window")
	if output, code := execute(t, nil, direct...); code != failed || !strings.Contains(output, "created with mode sharded") {
		t.Errorf("direct mode: exit code %d:\n%s", code, output)
	}
}

// without leaves flags out.
func without(args []string, flags ...string) []string {
	var left []string
	for _, arg := range args {
		keep := true
		for _, flag := range flags {
			keep = keep && !strings.HasPrefix(arg, flag+"=")
		}
		if keep {
			left = append(left, arg)
		}
	}
	return left
}

// A Redis that would evict counts is refused; one that forgets them in a crash is warned of.
func TestRedisSettings(t *testing.T) {
	t.Parallel()
	args := func(redis *redistest.Server) []string { return shardedArgs(redis.URL(), pgtest.NewDatabase(t)) }
	evicting := redistest.Start(t, redistest.MaxMemory(64<<20, "allkeys-lru"))
	output, code := execute(t, nil, append([]string{"serve", "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0"}, args(evicting)...)...)
	if code != failed || !strings.Contains(output, "maxmemory-policy is allkeys-lru") {
		t.Errorf("exit code %d:\n%s", code, output)
	}
	const warning = "redis has no append-only file"
	forgetful := start(t, args(redistest.Start(t, redistest.MaxMemory(64<<20, "volatile-lfu")))...)
	durable := start(t, args(redistest.Start(t, redistest.AppendFsyncAlways()))...)
	if !strings.Contains(string(forgetful.Output()), warning) || strings.Contains(string(durable.Output()), warning) {
		t.Error("the warning about the append-only file is missing, or out of place")
	}
}

// Whatever goes wrong, no output has the password of a URL.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	const secret = "sEcr3t/%40pass:word"
	redis := redistest.Start(t)
	redis.Do("CONFIG", "SET", "requirepass", "another")
	database := pgtest.NewDatabase(t)
	escaped := url.QueryEscape(secret)
	withUser := func(base, password string) string { return strings.Replace(base, "://", "://user:"+password+"@", 1) }
	free := []string{"--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0", "--log-level=debug"}
	for name, env := range map[string][]string{
		"postgres refuses":        {"PLUSONE_POSTGRES_URL=postgres://user:" + escaped + "@127.0.0.1:1/x?connect_timeout=1"},
		"postgres does not know":  {"PLUSONE_POSTGRES_URL=postgres://user:" + escaped + "@" + strings.SplitN(database, "@", 2)[1]},
		"postgres URL is bad":     {"PLUSONE_POSTGRES_URL=postgres://user:" + secret + "@127.0.0.1:x/x"},
		"postgres words":          {"PLUSONE_POSTGRES_URL=host=127.0.0.1 port=1 user=u password=" + escaped + " connect_timeout=1"},
		"postgres words are bad":  {"PLUSONE_POSTGRES_URL=host=127.0.0.1 port=none password=" + escaped},
		"redis refuses":           {"PLUSONE_POSTGRES_URL=" + database, "PLUSONE_REDIS_URL=redis://user:" + escaped + "@127.0.0.1:1"},
		"redis does not know":     {"PLUSONE_POSTGRES_URL=" + database, "PLUSONE_REDIS_URL=" + withUser(redis.URL(), escaped)},
		"redis URL is bad":        {"PLUSONE_POSTGRES_URL=" + database, "PLUSONE_REDIS_URL=redis://user:" + secret + "@127.0.0.1"},
		"redis scheme is bad":     {"PLUSONE_POSTGRES_URL=" + database, "PLUSONE_REDIS_URL=http://user:" + secret + "@127.0.0.1"},
		"postgres URL is missing": {"PLUSONE_REDIS_URL=" + withUser(redis.URL(), escaped)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			output, code := execute(t, env, append([]string{"serve"}, free...)...)
			checkNoSecret(t, output, secret)
			if code == 0 || output == "" {
				t.Errorf("exit code %d:\n%s", code, output)
			}
			output, code = execute(t, env, "serve", "--help")
			checkNoSecret(t, output, secret)
			if code != 0 {
				t.Errorf("exit code %d of --help:\n%s", code, output)
			}
		})
	}
	for _, args := range [][]string{
		{"serve", "redis://user:" + escaped + "@host"},
		{"redis://user:" + escaped + "@host"},
		{"serve", "--redis=redis://user:" + escaped + "@host"},
		{"serve", "password = " + escaped},
	} {
		output, code := execute(t, nil, args...)
		checkNoSecret(t, output, secret)
		if code != misuse {
			t.Errorf("exit code %d:\n%s", code, output)
		}
	}
}

func checkNoSecret(t *testing.T, output, secret string) {
	t.Helper()
	for _, part := range []string{secret, url.QueryEscape(secret), "sEcr3t", "pass:word"} {
		if strings.Contains(output, part) {
			t.Errorf("output has %q:\n%s", part, output)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	if output, code := execute(t, nil, "version"); code != 0 || !strings.HasPrefix(output, "plusone ") {
		t.Errorf("exit code %d, output %q", code, output)
	}
}
