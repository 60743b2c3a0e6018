package checker_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	guardv1 "github.com/plusone-dev/plusone/api/plusone/guard/v1"
	"github.com/plusone-dev/plusone/internal/checker"
	"github.com/plusone-dev/plusone/internal/guard"
)

var (
	question = guard.Question{Method: "Like", Caller: "web", Actor: "user:ä", Namespace: "likes", Token: `a "token" <&>`}
	// words must never get into a log or an error.
	words = "the checker's own words"
)

// asked is what a checker got.
type asked struct {
	question guard.Question
	bearer   string
}

// recorder is a checker that remembers what it was asked.
type recorder struct {
	mu     sync.Mutex
	asked  []asked
	answer *guardv1.CheckResponse
}

func (r *recorder) record(a asked) *guardv1.CheckResponse {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, a)
	return r.answer
}

func (r *recorder) last(t *testing.T) asked {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.asked) == 0 {
		t.Fatal("the checker was not asked")
	}
	return r.asked[len(r.asked)-1]
}

// grpcChecker serves GuardService by a function.
type grpcChecker struct {
	guardv1.UnimplementedGuardServiceServer
	check checkFunc
}

type checkFunc = func(context.Context, *guardv1.CheckRequest) (*guardv1.CheckResponse, error)

func (c *grpcChecker) Check(ctx context.Context, req *guardv1.CheckRequest) (*guardv1.CheckResponse, error) {
	return c.check(ctx, req)
}

func serveGRPC(t *testing.T, check checkFunc, options ...grpc.ServerOption) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server := grpc.NewServer(options...)
	guardv1.RegisterGuardServiceServer(server, &grpcChecker{check: check})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

func (r *recorder) checkGRPC(ctx context.Context, req *guardv1.CheckRequest) (*guardv1.CheckResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	return r.record(asked{
		question: guard.Question{Method: req.Method, Caller: req.Caller, Actor: req.Actor, Namespace: req.Namespace, Token: req.Token},
		bearer:   strings.Join(md.Get("authorization"), "|"),
	}), nil
}

// checkHTTP reads and writes the JSON by hand, as a checker that knows nothing of protos would.
func (r *recorder) checkHTTP(w http.ResponseWriter, req *http.Request) {
	var got struct{ Method, Caller, Actor, Namespace, Token string }
	decoder := json.NewDecoder(req.Body)
	decoder.DisallowUnknownFields()
	kind := req.Header.Get("Content-Type")
	if err := decoder.Decode(&got); err != nil || req.Method != http.MethodPost || kind != "application/json" {
		http.Error(w, words, http.StatusBadRequest)
		return
	}
	response := r.record(asked{question: guard.Question(got), bearer: strings.Join(req.Header.Values("Authorization"), "|")})
	answer := map[string]any{"allowed": response.Allowed, "reason": response.Reason, "later": []int{1}}
	if response.Ttl != nil {
		answer["ttl"] = strings.Replace(response.Ttl.AsDuration().String(), "m0s", "m", 1)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(answer)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open returns a client of the checker at a URL, and its log.
func open(t *testing.T, url string, change func(*checker.Config)) (*checker.Client, *logBuffer) {
	t.Helper()
	target, err := checker.ParseTarget(url)
	must(t, err)
	log := &logBuffer{}
	config := checker.Config{
		// Ample, since what is tested here is not the time.
		Target: target, Timeout: 10 * time.Second, MaxInFlight: 10, CacheTTL: time.Minute, CacheEntries: 100,
		Logger: slog.New(slog.NewTextHandler(log, nil)), Registry: prometheus.NewRegistry(),
	}
	if change != nil {
		change(&config)
	}
	client, err := checker.New(config)
	must(t, err)
	t.Cleanup(func() { must(t, client.Close()) })
	return client, log
}

// logBuffer may be read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// certificate is one of 127.0.0.1, and the authorities that know it.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	return server.TLS.Certificates[0], pool
}

// Over each of the four kinds of URL the checker gets the whole question and the secret of the moment, and its answer is
// understood.
func TestContract(t *testing.T) {
	t.Parallel()
	cert, authorities := certificate(t)
	for scheme, serve := range map[string]func(*testing.T, *recorder) string{
		"grpc": func(t *testing.T, r *recorder) string { return serveGRPC(t, r.checkGRPC) },
		"grpcs": func(t *testing.T, r *recorder) string {
			return serveGRPC(t, r.checkGRPC, grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
		},
		"http": func(t *testing.T, r *recorder) string {
			server := httptest.NewServer(http.HandlerFunc(r.checkHTTP))
			t.Cleanup(server.Close)
			return server.Listener.Addr().String()
		},
		"https": func(t *testing.T, r *recorder) string {
			server := httptest.NewUnstartedServer(http.HandlerFunc(r.checkHTTP))
			server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
			server.StartTLS()
			t.Cleanup(server.Close)
			return server.Listener.Addr().String()
		},
	} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			r := &recorder{}
			var secret atomic.Pointer[string]
			client, log := open(t, scheme+"://"+serve(t, r), func(c *checker.Config) {
				c.CacheTTL, c.CA = 0, authorities
				c.Token = func() string { return *secret.Load() }
			})
			for _, step := range []struct {
				secret, bearer string
				answer         *guardv1.CheckResponse
				want           guard.Decision
			}{
				{"first", "Bearer first", &guardv1.CheckResponse{Allowed: proto.Bool(true)}, guard.Decision{Allowed: true}},
				{"second", "Bearer second", &guardv1.CheckResponse{Allowed: proto.Bool(false)}, guard.Decision{}},
				{
					"", "", &guardv1.CheckResponse{Allowed: proto.Bool(false), Reason: "LEVEL_TOO_LOW", Ttl: durationpb.New(time.Second)},
					guard.Decision{Reason: "LEVEL_TOO_LOW"},
				},
			} {
				r.mu.Lock()
				r.answer = step.answer
				r.mu.Unlock()
				secret.Store(&step.secret)
				got, err := client.Check(t.Context(), question)
				if err != nil || got != step.want {
					t.Errorf("answered %+v, %v, want %+v", got, err, step.want)
				}
				if sent := r.last(t); !reflect.DeepEqual(sent, asked{question, step.bearer}) {
					t.Errorf("the checker got %+v", sent)
				}
			}
			if text := log.String(); text != "" {
				t.Errorf("logged: %s", text)
			}
		})
	}
}

// failure asks a question that must fail, with a cause in the log and none of the checker's words anywhere.
func failure(t *testing.T, url, cause string, change func(*checker.Config)) {
	t.Helper()
	client, log := open(t, url, change)
	got, err := client.Check(t.Context(), question)
	if err == nil || got.Allowed {
		t.Fatalf("answered %+v", got)
	}
	text := log.String()
	if !strings.Contains(text, cause) {
		t.Errorf("the log lacks %q: %s", cause, text)
	}
	for _, secret := range []string{words, "Own-Words", "s3cret", "token", question.Actor} {
		if strings.Contains(text, secret) || strings.Contains(err.Error(), secret) {
			t.Errorf("%q is in the log or the error: %v, %s", secret, err, text)
		}
	}
}

func withSecret(c *checker.Config) { c.Token = func() string { return "s3cret" } }

// What a checker over gRPC must not do.
func TestBadAnswersOverGRPC(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		check checkFunc
		cause string
	}{
		"refusal as an error": {func(context.Context, *guardv1.CheckRequest) (*guardv1.CheckResponse, error) {
			return nil, status.Error(codes.PermissionDenied, words)
		}, "code PermissionDenied"},
		"unavailable": {func(context.Context, *guardv1.CheckRequest) (*guardv1.CheckResponse, error) {
			return nil, status.Error(codes.Unavailable, words)
		}, "code Unavailable"},
		"no decision": {func(context.Context, *guardv1.CheckRequest) (*guardv1.CheckResponse, error) {
			return &guardv1.CheckResponse{}, nil
		}, "does not say whether"},
		"too long": {func(context.Context, *guardv1.CheckRequest) (*guardv1.CheckResponse, error) {
			return &guardv1.CheckResponse{Allowed: proto.Bool(true), Reason: strings.Repeat("A", 4096)}, nil
		}, "code ResourceExhausted"},
		"long header": {func(ctx context.Context, _ *guardv1.CheckRequest) (*guardv1.CheckResponse, error) {
			_ = grpc.SetHeader(ctx, metadata.Pairs("own-words", strings.Repeat("A", 1<<16)))
			return &guardv1.CheckResponse{Allowed: proto.Bool(true)}, nil
		}, "code "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			failure(t, "grpc://"+serveGRPC(t, test.check), test.cause, withSecret)
		})
	}
}

// A checker that cannot be reached, or is not who it should be, gets no question, and the log says why.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	cert, authorities := certificate(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	free := listener.Addr().String()
	listener.Close()

	var r recorder
	overTLS := serveGRPC(t, r.checkGRPC, grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	httpsServer := httptest.NewTLSServer(http.HandlerFunc(r.checkHTTP))
	t.Cleanup(httpsServer.Close)
	httpsServer.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	https := httpsServer.Listener.Addr().String()
	_, httpsPort, err := net.SplitHostPort(https)
	must(t, err)
	plain := serveGRPC(t, r.checkGRPC)

	for _, test := range []struct {
		name, url, cause string
		authorities      *x509.CertPool
	}{
		{"nobody listens, gRPC", "grpc://" + free, "connection refused", nil},
		{"nobody listens, HTTP", "http://" + free, "connection refused", nil},
		{"unknown authority, gRPC", "grpcs://" + overTLS, "unknown authority", nil},
		{"unknown authority, HTTP", "https://" + https, "unknown authority", nil},
		{"other name, gRPC", "grpcs://localhost:" + port(t, overTLS), "not localhost", authorities},
		{"other name, HTTP", "https://localhost:" + httpsPort, "not localhost", authorities},
		{"not TLS, gRPC", "grpcs://" + plain, "first record does not look like a TLS handshake", authorities},
		{"not TLS, HTTP", "https://" + plain, "first record does not look like a TLS handshake", authorities},
		{"TLS, though not asked for, gRPC", "grpc://" + overTLS, "", nil},
		{"TLS, though not asked for, HTTP", "http://" + https, "status 400", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			failure(t, test.url, test.cause, func(c *checker.Config) {
				withSecret(c)
				c.CA = test.authorities
			})
		})
	}
	t.Cleanup(func() {
		if len(r.asked) > 0 {
			t.Errorf("the checker got %+v", r.asked)
		}
	})
}

func port(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	must(t, err)
	return port
}

// A checker that comes back is connected to again at once.
func TestCheckerComesBack(t *testing.T) {
	t.Parallel()
	r := &recorder{answer: &guardv1.CheckResponse{Allowed: proto.Bool(true)}}
	for scheme, serve := range map[string]func(net.Listener) (stop func()){
		"grpc": func(l net.Listener) func() {
			server := grpc.NewServer()
			guardv1.RegisterGuardServiceServer(server, &grpcChecker{check: r.checkGRPC})
			go func() { _ = server.Serve(l) }()
			return server.Stop
		},
		"http": func(l net.Listener) func() {
			server := &http.Server{Handler: http.HandlerFunc(r.checkHTTP)}
			go func() { _ = server.Serve(l) }()
			return func() { _ = server.Close() }
		},
	} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			addr := listener.Addr().String()
			stop := serve(listener)
			client, _ := open(t, scheme+"://"+addr, func(c *checker.Config) { c.CacheTTL = 0 })
			_, err = client.Check(t.Context(), question)
			must(t, err)
			stop()
			if _, err = client.Check(t.Context(), question); err == nil {
				t.Error("a checker that is gone has answered")
			}
			listener, err = net.Listen("tcp", addr)
			must(t, err)
			t.Cleanup(serve(listener))
			deadline := time.Now().Add(10 * time.Second)
			for err = io.EOF; err != nil && time.Now().Before(deadline); {
				_, err = client.Check(t.Context(), question)
			}
			must(t, err)
		})
	}
}
