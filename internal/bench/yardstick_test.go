package bench_test

import (
	"context"
	"fmt"
	"hash/maphash"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/rueidis"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/connlimit"
	"github.com/plusone-dev/plusone/internal/testproc"
	"github.com/plusone-dev/plusone/server"
)

// The yardsticks are what plusone is compared with: the same messages over the same gRPC server, without what makes
// plusone: checks, metrics, request ids, combining. Each is a process of its own, of this program.
const (
	// echo answers at once: what gRPC alone takes.
	echo = "echo"
	// quiet is echo over connections like plusone's (internal/rawconn).
	quiet = "quiet"
	// held answers all calls that wait together, every 2 ms: what gRPC takes if handlers wait.
	held = "held"
	// bare combines as plusone does over connections like its own, and has nothing but that and a script that counts each
	// request id once.
	bare = "bare"
	// asking is bare, and asks the ledger whether a like is new, so that Redis need not keep all likes.
	asking = "asking"
	// naive has one INCRBY on one of 8 keys for each increment, and 8 GETs for each read.
	naive = "naive"
	// once has one script for each increment, which takes the request id by SET NX and counts with INCRBY.
	once = "once"
	// update has one UPDATE in Postgres for each increment.
	update = "update"
)

const (
	yardstickEnv      = "PLUSONE_YARDSTICK"
	yardstickAddrEnv  = "PLUSONE_YARDSTICK_ADDR"
	yardstickStoreEnv = "PLUSONE_YARDSTICK_STORE"
	// naiveShards are those of naive.
	naiveShards = 8
)

// yardstick starts one, which ends with the test. The store is the URL of what it counts in, if anything.
func yardstick(t testing.TB, kind, store string) target {
	t.Helper()
	port, err := testproc.ReservePort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = port.Release() })
	p, err := testproc.Start(testproc.Command{
		Path: os.Args[0], Log: filepath.Join(testproc.TempDir(t), kind+".log"),
		// The same as plusone's own.
		Env: append(os.Environ(), yardstickEnv+"="+kind, yardstickAddrEnv+"="+port.Addr(), yardstickStoreEnv+"="+store, "GOGC=400"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	ready := testproc.Poll(time.Minute, 5*time.Millisecond, func() bool {
		conn, err := net.Dial("tcp", port.Addr())
		if err == nil {
			_ = conn.Close()
		}
		return err == nil || p.Exited()
	})
	if !ready || p.Exited() {
		t.Fatalf("%s is not ready:\n%s", kind, p.LogTail(20))
	}
	return target{name: kind, addr: port.Addr(), pid: p.PID()}
}

func runYardstick(kind string) error {
	listener, err := net.Listen("tcp", os.Getenv(yardstickAddrEnv))
	if err != nil {
		return err
	}
	service, err := newYardstick(kind, os.Getenv(yardstickStoreEnv))
	if err != nil {
		return err
	}
	switch kind {
	case quiet, bare, asking:
		listener = connlimit.Listen(listener, "grpc", 1000, connlimit.NewMetrics(prometheus.NewRegistry()))
	}
	s := grpc.NewServer(server.Limits()...)
	plusonev1.RegisterCounterServiceServer(s, service)
	return s.Serve(listener)
}

func newYardstick(kind, store string) (plusonev1.CounterServiceServer, error) {
	switch kind {
	case echo, quiet:
		return &echoService{}, nil
	case held:
		h := &heldService{}
		go h.release()
		return h, nil
	case bare, asking:
		return newBare(store, kind == asking)
	case naive, once:
		client, err := rueidis.NewClient(rueidis.MustParseURL(store))
		if err != nil {
			return nil, err
		}
		n := naiveService{redis: client, seed: maphash.MakeSeed()}
		if kind == once {
			return &onceService{naiveService: n, script: rueidis.NewLuaScript(onceScript)}, nil
		}
		return &n, nil
	case update:
		pool, err := pgxpool.New(context.Background(), store)
		if err != nil {
			return nil, err
		}
		_, err = pool.Exec(context.Background(), `CREATE TABLE IF NOT EXISTS yardstick (key text PRIMARY KEY, count bigint NOT NULL)`)
		return &updateService{postgres: pool}, err
	}
	return nil, fmt.Errorf("there is no yardstick %q", kind)
}

// echoService answers with messages as large as plusone's.
type echoService struct {
	plusonev1.UnimplementedCounterServiceServer
}

func (*echoService) Increment(context.Context, *plusonev1.IncrementRequest) (*plusonev1.IncrementResponse, error) {
	return applied(), nil
}

func (*echoService) Get(_ context.Context, r *plusonev1.GetRequest) (*plusonev1.GetResponse, error) {
	return &plusonev1.GetResponse{Count: &plusonev1.Count{Key: r.GetKey(), Count: 1_000_000, AsOf: timestamppb.Now()}}, nil
}

func (*echoService) BatchGet(_ context.Context, r *plusonev1.BatchGetRequest) (*plusonev1.BatchGetResponse, error) {
	now := timestamppb.Now()
	resp := &plusonev1.BatchGetResponse{Counts: make([]*plusonev1.Count, len(r.GetKeys()))}
	for i, key := range r.GetKeys() {
		resp.Counts[i] = &plusonev1.Count{Key: key, Count: 1_000_000, AsOf: now}
	}
	return resp, nil
}

type heldService struct {
	echoService
	mu      sync.Mutex
	waiting []chan struct{}
}

func (s *heldService) Increment(context.Context, *plusonev1.IncrementRequest) (*plusonev1.IncrementResponse, error) {
	done := make(chan struct{})
	s.mu.Lock()
	s.waiting = append(s.waiting, done)
	s.mu.Unlock()
	<-done
	return applied(), nil
}

func (s *heldService) release() {
	for range time.Tick(2 * time.Millisecond) {
		s.mu.Lock()
		waiting := s.waiting
		s.waiting = nil
		s.mu.Unlock()
		for _, done := range waiting {
			close(done)
		}
	}
}

func applied() *plusonev1.IncrementResponse {
	return &plusonev1.IncrementResponse{Outcome: plusonev1.Outcome_OUTCOME_APPLIED, AsOf: timestamppb.Now()}
}

type naiveService struct {
	plusonev1.UnimplementedCounterServiceServer
	redis rueidis.Client
	seed  maphash.Seed
}

func (s *naiveService) shard(key string, n uint64) string {
	return fmt.Sprintf("naive:%s:%d", key, n%naiveShards)
}

func (s *naiveService) Increment(ctx context.Context, r *plusonev1.IncrementRequest) (*plusonev1.IncrementResponse, error) {
	key := s.shard(r.GetKey(), maphash.Comparable(s.seed, time.Now().UnixNano()))
	if err := s.redis.Do(ctx, s.redis.B().Incrby().Key(key).Increment(r.GetDelta()).Build()).Error(); err != nil {
		return nil, err
	}
	return applied(), nil
}

func (s *naiveService) Get(ctx context.Context, r *plusonev1.GetRequest) (*plusonev1.GetResponse, error) {
	commands := make(rueidis.Commands, naiveShards)
	for i := range commands {
		commands[i] = s.redis.B().Get().Key(s.shard(r.GetKey(), uint64(i))).Build()
	}
	var sum int64
	for _, answer := range s.redis.DoMulti(ctx, commands...) {
		n, err := answer.AsInt64()
		if err != nil && !rueidis.IsRedisNil(err) {
			return nil, err
		}
		sum += n
	}
	return &plusonev1.GetResponse{Count: &plusonev1.Count{Key: r.GetKey(), Count: sum, AsOf: timestamppb.Now()}}, nil
}

type onceService struct {
	naiveService
	script *rueidis.Lua
}

const onceScript = `
if redis.call('SET', KEYS[2], '1', 'NX', 'PX', 300000) then redis.call('INCRBY', KEYS[1], ARGV[1]) end
return 1`

func (s *onceService) Increment(ctx context.Context, r *plusonev1.IncrementRequest) (*plusonev1.IncrementResponse, error) {
	key := s.shard(r.GetKey(), maphash.String(s.seed, r.GetRequestId()))
	err := s.script.Exec(ctx, s.redis, []string{key, "id:" + r.GetRequestId()}, []string{fmt.Sprint(r.GetDelta())}).Error()
	if err != nil {
		return nil, err
	}
	return applied(), nil
}

type updateService struct {
	plusonev1.UnimplementedCounterServiceServer
	postgres *pgxpool.Pool
}

func (s *updateService) Increment(ctx context.Context, r *plusonev1.IncrementRequest) (*plusonev1.IncrementResponse, error) {
	_, err := s.postgres.Exec(ctx, `INSERT INTO yardstick AS y VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET count = y.count + excluded.count`,
		r.GetKey(), r.GetDelta())
	if err != nil {
		return nil, err
	}
	return applied(), nil
}
