package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync/atomic"
	"time"
	_ "unsafe" // for go:linkname

	"google.golang.org/grpc"
	channelz "google.golang.org/grpc/channelz/service"
)

// channelzOn is gRPC's switch for what its channelz service tells. To import that service turns it on, and gRPC has no way to turn it
// off again, though it takes a fiftieth of the CPU for a call, whoever asks for what it tells or not.
//
//go:linkname channelzOn google.golang.org/grpc/internal/channelz.curState
var channelzOn int32

func init() { collectChannelz(false) }

// collectChannelz turns channelz on, for the servers and clients that are made from then on, or off.
func collectChannelz(on bool) {
	value := int32(0)
	if on {
		value = 1
	}
	atomic.StoreInt32(&channelzOn, value)
}

// debugServer serves what shows the inside of a process: profiles by HTTP, and by gRPC its channelz service.
type debugServer struct {
	http *http.Server
	grpc *grpc.Server
	done chan error
}

// serveDebug serves at a loopback address, and nowhere else whatever is set: what it shows has no protection.
func serveDebug(ctx context.Context, address string, logger *slog.Logger) (*debugServer, error) {
	const flag = "--admin-addr"
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, &usageError{fmt.Sprintf("%s: %v", flag, err)}
	}
	if !addr.IP.IsLoopback() {
		return nil, &usageError{fmt.Sprintf("%s %s is not a loopback address, and profiles are for nobody else: "+
			"reach it through a tunnel to this machine", flag, address)}
	}
	listener, err := listen(ctx, flag, addr)
	if err != nil {
		return nil, err
	}
	collectChannelz(true)
	d := &debugServer{grpc: grpc.NewServer(), done: make(chan error, 1)}
	channelz.RegisterChannelzServiceToServer(d.grpc)
	mux := http.NewServeMux()
	// Not /debug/pprof/cmdline: a URL on the command line may hold a password.
	mux.HandleFunc("GET /debug/pprof/{$}", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	for _, profile := range []string{"allocs", "block", "goroutine", "heap", "mutex", "threadcreate"} {
		mux.Handle("GET /debug/pprof/"+profile, pprof.Handler(profile))
	}
	d.http = &http.Server{
		Handler:           d.local(mux),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		Protocols:         new(http.Protocols),
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
	d.http.Protocols.SetHTTP1(true)
	d.http.Protocols.SetUnencryptedHTTP2(true)
	go func() { d.done <- d.http.Serve(listener) }()
	logger.Info("profiles are served", "admin_addr", listener.Addr().String())
	return d, nil
}

// local serves what was asked of this machine by its own name: a page on the web that has its name resolved to loopback
// gets nothing out of a browser here.
func (d *debugServer) local(pages http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		ip := net.ParseIP(strings.Trim(host, "[]"))
		switch {
		case host != "localhost" && (ip == nil || !ip.IsLoopback()):
			http.Error(w, "ask by a loopback address", http.StatusForbidden)
		case r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
			d.grpc.ServeHTTP(w, r)
		default:
			pages.ServeHTTP(w, r)
		}
	})
}

// close ends everything at once: nobody's work is lost by it.
func (d *debugServer) close() error {
	err := d.http.Close()
	d.grpc.Stop()
	if served := <-d.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
