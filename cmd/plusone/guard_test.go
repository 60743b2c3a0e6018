package main_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	guardv1 "github.com/plusone-dev/plusone/api/plusone/guard/v1"
	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/guard"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

const (
	guardSecret = "gu4rd-s3cret"
	guardToken  = "s0lved-captcha"
)

// captcha is a checker that lets in who has solved a CAPTCHA, over gRPC and over HTTP.
type captcha struct {
	guardv1.UnimplementedGuardServiceServer

	asked   atomic.Int64
	latency atomic.Int64 // of answers, in nanoseconds

	mu   sync.Mutex
	last guard.Question
}

func (c *captcha) answer(ctx context.Context, q guard.Question, authorization string) (allowed bool, reason string, err error) {
	c.asked.Add(1)
	c.mu.Lock()
	c.last = q
	c.mu.Unlock()
	if latency := time.Duration(c.latency.Load()); latency > 0 {
		select {
		case <-time.After(latency):
		case <-ctx.Done(): // just before the deadline of the one who asks
			return false, "", ctx.Err()
		}
	}
	switch {
	case authorization != "Bearer "+guardSecret:
		return false, "WHO_ARE_YOU", nil
	case q.Token != guardToken:
		return false, "CAPTCHA_REQUIRED", nil
	}
	return true, "", nil
}

func (c *captcha) lastAsked() guard.Question {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

func (c *captcha) Check(ctx context.Context, req *guardv1.CheckRequest) (*guardv1.CheckResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	allowed, reason, err := c.answer(ctx, guard.Question{
		Method: req.Method, Caller: req.Caller, Actor: req.Actor, Namespace: req.Namespace, Token: req.Token,
	}, strings.Join(md.Get("authorization"), ""))
	return &guardv1.CheckResponse{Allowed: proto.Bool(allowed), Reason: reason}, err
}

func (c *captcha) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var q struct{ Method, Caller, Actor, Namespace, Token string }
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.URL.Path != "/check" {
		http.Error(w, "no", http.StatusBadRequest)
		return
	}
	allowed, reason, err := c.answer(r.Context(), guard.Question(q), r.Header.Get("Authorization"))
	if err != nil {
		http.Error(w, "too late", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"allowed": allowed, "reason": reason})
}

// serve serves at an address, with TLS if there is a certificate, and returns the URL for plusone.
func (c *captcha) serve(t *testing.T, scheme, addr string, certificate *tls.Certificate) (url string) {
	t.Helper()
	listener, err := net.Listen("tcp", addr)
	must(t, err)
	addr = listener.Addr().String()
	if strings.HasPrefix(scheme, "http") {
		server := &http.Server{Handler: c, ReadHeaderTimeout: time.Minute}
		if certificate != nil {
			listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{*certificate}})
		}
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(func() { _ = server.Close() })
		return scheme + "://" + addr + "/check"
	}
	var options []grpc.ServerOption
	if certificate != nil {
		options = append(options, grpc.Creds(credentials.NewServerTLSFromCert(certificate)))
	}
	server := grpc.NewServer(options...)
	guardv1.RegisterGuardServiceServer(server, c)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return scheme + "://" + addr
}

// startGuarded starts a server that asks about likes and increments, but not in the namespace free.
func startGuarded(t *testing.T, url string, args ...string) *plusonetest.Instance {
	t.Helper()
	dir := testproc.TempDir(t)
	secret, policy := filepath.Join(dir, "secret"), filepath.Join(dir, "policy.yaml")
	must(t, os.WriteFile(secret, []byte(guardSecret+"\n"), 0o600))
	must(t, os.WriteFile(policy, []byte("default: {guard: true}\nnamespaces:\n  free: {guard: false}\n"), 0o600))
	s := start(t, append([]string{
		"--data=" + dir + "/plusone.db", "--policy-file=" + policy, "--guard-url=" + url, "--guard-token-file=" + secret,
		"--log-level=debug",
	}, args...)...)
	t.Cleanup(func() {
		for _, hidden := range []string{guardSecret, guardToken} {
			if strings.Contains(string(s.Output()), hidden) {
				t.Errorf("the log has %q", hidden)
			}
		}
	})
	return s
}

// rawDial is a client that never repeats a call.
func rawDial(t *testing.T, s *plusonetest.Instance) plusonev1.CounterServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(s.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return plusonev1.NewCounterServiceClient(conn)
}

// likeAs likes as an actor, with a token if it is not empty, and describes the answer.
func likeAs(t *testing.T, c plusonev1.CounterServiceClient, actor, token string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, guard.TokenHeader, token)
	}
	_, err := c.Like(ctx, &plusonev1.LikeRequest{Key: "likes/post", Actor: actor})
	return outcomeOf(err)
}

// outcomeOf is OK, or the code and the reason of an error, and "retry" if it asks for that.
func outcomeOf(err error) string {
	st := status.Convert(err)
	reason, retry := "", ""
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = strings.TrimRight(" "+d.Reason+" "+d.Metadata["reason"], " ")
		case *errdetails.RetryInfo:
			retry = " retry"
		}
	}
	return st.Code().String() + reason + retry
}

func wantOutcome(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// A checker over each kind of URL decides what counts. Its answers are kept.
func TestGuard(t *testing.T) {
	t.Parallel()
	tlsServer := httptest.NewTLSServer(nil)
	certificate := tlsServer.TLS.Certificates[0]
	tlsServer.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}), 0o600))
	for _, scheme := range []string{"grpc", "grpcs", "http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			checker := &captcha{}
			args := []string{"--guard-timeout=10s", "--request-timeout=30s"}
			var served *tls.Certificate
			if strings.HasSuffix(scheme, "s") {
				args = append(args, "--guard-ca="+ca)
				served = &certificate
			}
			s := startGuarded(t, checker.serve(t, scheme, "127.0.0.1:0", served), args...)
			c := rawDial(t, s)
			tooLong := strings.Repeat("x", guard.MaxTokenBytes+1)
			for range 3 {
				wantOutcome(t, "solved", likeAs(t, c, "user:1", guardToken), "OK")
				wantOutcome(t, "not solved", likeAs(t, c, "user:2", ""), "PermissionDenied GUARD_DENIED CAPTCHA_REQUIRED")
				wantOutcome(t, "nonsense", likeAs(t, c, "user:2", tooLong), "PermissionDenied GUARD_DENIED TOKEN_INVALID")
			}
			if asked := checker.asked.Load(); asked != 2 {
				t.Errorf("asked %d times, want 2", asked)
			}
			if got, want := checker.lastAsked(), (guard.Question{Method: "Like", Actor: "user:2", Namespace: "likes"}); got != want {
				t.Errorf("asked %+v, want %+v", got, want)
			}

			ctx := metadata.AppendToOutgoingContext(t.Context(), guard.TokenHeader, guardToken)
			_, err := c.Increment(ctx, &plusonev1.IncrementRequest{Key: "likes/post", Actor: "user:3"})
			wantOutcome(t, "increment", outcomeOf(err), "OK")
			_, err = c.Increment(t.Context(), &plusonev1.IncrementRequest{Key: "likes/post", Actor: "user:4"})
			wantOutcome(t, "increment, not solved", outcomeOf(err), "PermissionDenied GUARD_DENIED CAPTCHA_REQUIRED")
			_, err = c.Unlike(t.Context(), &plusonev1.UnlikeRequest{Key: "likes/post", Actor: "user:1"})
			wantOutcome(t, "unlike, not solved", outcomeOf(err), "PermissionDenied GUARD_DENIED CAPTCHA_REQUIRED")
			before := checker.asked.Load()
			_, err = c.Increment(t.Context(), &plusonev1.IncrementRequest{Key: "free/page"})
			wantOutcome(t, "where nobody is asked", outcomeOf(err), "OK")
			if checker.asked.Load() != before {
				t.Error("the checker was asked about a namespace without a guard")
			}

			if got := count(t, dial(t, s), "likes/post"); got != 2 { // a like and an increment
				t.Errorf("the count is %d, want 2", got)
			}
			for metric, want := range map[string]float64{
				`plusone_guard_decisions_total{decision="allowed"}`: 4, `plusone_guard_decisions_total{decision="denied"}`: 8,
				"plusone_guard_cache_hits_total": 4, "plusone_guard_call_seconds_count": 5, "plusone_guard_breaker_open": 0,
			} {
				if got := labelled(t, s, metric); got != want {
					t.Errorf("%s is %v, want %v", metric, got, want)
				}
			}
			s.Terminate()
		})
	}
}

// labelled is the value of the metric that is written as name is.
func labelled(t *testing.T, s *plusonetest.Instance, name string) float64 {
	t.Helper()
	_, page := s.Page("/metrics")
	for line := range strings.Lines(page) {
		var value float64
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			_, err := fmt.Sscan(rest, &value)
			must(t, err)
			return value
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// While the checker is down or slow, changes fare as was chosen; it is left alone until it answers again.
func TestGuardFailures(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ scheme, onFailure, want, decision string }{
		{"grpc", "closed", "Unavailable GUARD_UNAVAILABLE retry", "failed_closed"},
		{"http", "closed", "Unavailable GUARD_UNAVAILABLE retry", "failed_closed"},
		{"grpc", "open", "OK", "failed_open"},
		{"http", "open", "OK", "failed_open"},
	} {
		t.Run(test.scheme+" "+test.onFailure, func(t *testing.T) {
			t.Parallel()
			port, err := testproc.ReservePort()
			must(t, err)
			t.Cleanup(func() { _ = port.Release() })
			url := map[string]string{"grpc": "grpc://" + port.Addr(), "http": "http://" + port.Addr() + "/check"}[test.scheme]
			s := startGuarded(t, url, "--guard-on-failure="+test.onFailure, "--guard-timeout=50ms")
			c := rawDial(t, s)
			const enough = 20 // failures until it is left alone
			actor := 0
			// like is by an actor and with a token that the checker would not let pass, so if it counts that is by choice.
			like := func() string {
				actor++
				return likeAs(t, c, fmt.Sprint("user:", actor), "x")
			}
			eventually(t, "the checker is left alone", func() bool {
				wantOutcome(t, "down", like(), test.want)
				return labelled(t, s, "plusone_guard_breaker_open") == 1
			})

			checker := &captcha{}
			checker.latency.Store(int64(time.Minute))
			checker.serve(t, test.scheme, port.Addr(), nil)
			began := time.Now()
			eventually(t, "the checker is asked again", func() bool {
				wantOutcome(t, "slow", like(), test.want)
				return checker.asked.Load() > 0
			})
			if took := time.Since(began); took > patience/2 {
				t.Errorf("a slow checker held likes up for %v", took)
			}
			checker.latency.Store(0)
			eventually(t, "the checker decides again", func() bool { return like() == "PermissionDenied GUARD_DENIED CAPTCHA_REQUIRED" })
			eventually(t, "the breaker is closed", func() bool { return labelled(t, s, "plusone_guard_breaker_open") == 0 })
			if labelled(t, s, `plusone_guard_decisions_total{decision="`+test.decision+`"}`) < enough {
				t.Errorf("too few decisions are counted as %s", test.decision)
			}
			for _, line := range []string{"the checker could not tell", "the checker answers again"} {
				if s.Logged(line) == nil {
					t.Errorf("the log lacks %q", line)
				}
			}
		})
	}
}

// The checker that docs/operating.md shows compiles, and decides.
func TestDocumentedChecker(t *testing.T) {
	t.Parallel()
	block := regexp.MustCompile("(?s)```go\n(package main.*?)```").FindStringSubmatch(readDoc(t, "docs/operating.md"))
	if block == nil {
		t.Fatal("docs/operating.md has no program")
	}
	port, err := testproc.ReservePort()
	must(t, err)
	t.Cleanup(func() { _ = port.Release() })
	program := strings.ReplaceAll(block[1], "127.0.0.1:9000", port.Addr())
	dir := testproc.TempDir(t)
	must(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o600))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "checker"), filepath.Join(dir, "main.go"))
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, output)
	}
	checker, err := testproc.Start(testproc.Command{Path: filepath.Join(dir, "checker"), Log: filepath.Join(dir, "log"), Dir: dir})
	must(t, err)
	t.Cleanup(func() { must(t, checker.Kill()) })

	s := startGuarded(t, "http://"+port.Addr()+"/check", "--guard-timeout=4s", "--guard-cache-ttl=10ms")
	c := rawDial(t, s)
	eventually(t, "the checker lets a solved CAPTCHA pass", func() bool { return likeAs(t, c, "user:1", "let-me-in") == "OK" })
	wantOutcome(t, "solved before", likeAs(t, c, "user:1", ""), "OK")
	wantOutcome(t, "not solved", likeAs(t, c, "user:2", ""), "PermissionDenied GUARD_DENIED CAPTCHA_REQUIRED")
}

func TestGuardRefusals(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	policy := "--policy-file=" + write("policy.yaml", "default: {guard: true}\n")
	for _, test := range []struct {
		args string
		code int
		want string
	}{
		{"--guard-timeout=1s", misuse, "--guard-timeout has no effect without --guard-url"},
		{"--guard-url=grpc://127.0.0.1:1 --policy-file=", misuse, "--guard-url has no effect without --policy-file"},
		{"--guard-on-failure=open --guard-ca=x", misuse, "--guard-ca has no effect without --guard-url"},
		{"--guard-url=tcp://127.0.0.1:1", misuse, "--guard-url must have the scheme grpc"},
		{"--guard-url=http://user:gu4rd-s3cret@127.0.0.1:1/", misuse, "a secret belongs into --guard-token-file"},
		{"--guard-url=grpc://203.0.113.1:1", misuse, "neither encrypted nor on loopback"},
		{"--guard-url=http://checker/", misuse, "neither encrypted nor on loopback"},
		{"--guard-url=http://127.0.0.1:1/ --guard-ca=x", misuse, "--guard-ca has no effect without TLS"},
		{"--guard-url=grpc://127.0.0.1:1 --guard-timeout=0s", misuse, "--guard-timeout is 0s"},
		{"--guard-url=grpc://127.0.0.1:1 --guard-timeout=1s --request-timeout=1s", misuse, "must be less than --request-timeout"},
		{"--guard-url=grpc://127.0.0.1:1 --guard-cache-ttl=25h", misuse, "--guard-cache-ttl is 25h"},
		{"--guard-url=grpc://127.0.0.1:1 --guard-cache-entries=0", misuse, "--guard-cache-entries is 0"},
		{"--guard-url=grpc://127.0.0.1:1 --guard-cache-ttl=0s --guard-cache-entries=5", misuse, "has no effect with --guard-cache-ttl=0"},
		{"--guard-url=grpc://127.0.0.1:1 --guard-max-in-flight=0", misuse, "--guard-max-in-flight is 0"},
		{"--guard-url=grpc://127.0.0.1:1 --guard-on-failure=maybe", misuse, "--guard-on-failure must be one of"},
		{"--guard-url=grpcs://checker:1 --guard-ca=" + dir + "/none", failed, "--guard-ca: open "},
		{"--guard-url=grpcs://checker:1 --guard-ca=" + write("no.pem", "gu4rd-s3cret"), failed, "has no certificate in PEM"},
		{"--guard-url=grpc://127.0.0.1:1 --guard-token-file=" + dir + "/none", failed, "--guard-token-file: "},
		{"--guard-url=grpc://127.0.0.1:1 --guard-token-file=" + write("empty", "\n"), failed, "is empty"},
		{"--guard-url=grpc://127.0.0.1:1 --guard-token-file=" + write("two", "gu4rd-s3cret\ntwo\n"), failed, "must hold one line"},
	} {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"serve", "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0", policy}, strings.Fields(test.args)...)
			output, code := execute(t, nil, args...)
			if code != test.code || !strings.Contains(output, test.want) || strings.Contains(output, guardSecret) {
				t.Errorf("exit code %d, want %d; output lacks %q, or has the secret:\n%s", code, test.code, test.want, output)
			}
		})
	}
}
