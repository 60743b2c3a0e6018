package server

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/plusone-dev/plusone/internal/identity"
)

// maxLinesPerSecond bounds the lines of each level, as every call may fail at once.
const maxLinesPerSecond = 10

// callLog logs failed calls: those that are the server's fault as errors, those that are for want of
// capacity or time as warnings, the caller's own as info. These lines have neither keys nor actors, nor names of callers that
// hold an actor's id. At debug level there is a line for each call besides, which has them.
type callLog struct {
	logger  *slog.Logger
	metrics *metrics
	traced  bool // calls may have traces
	debug   bool // each call is logged
	// pseudonymKey is nowhere else, so pseudonyms do not tell whom they stand for: a hash without a key would not hide an id
	// that can be guessed.
	pseudonymKey [sha256.Size]byte

	errors, warnings, infos lineLimit
	// refusals are apart from infos, as anybody can cause them.
	refusals lineLimit
}

// newCallLog makes a log. Whether it logs each call does not change later, so that otherwise a call costs nothing.
func newCallLog(logger *slog.Logger, traced bool, m *metrics) *callLog {
	l := &callLog{logger: logger, metrics: m, traced: traced, debug: logger.Enabled(context.Background(), slog.LevelDebug)}
	_, _ = rand.Read(l.pseudonymKey[:]) // it never fails
	return l
}

// nameOf is the name of a caller, or what stands for it in lines above debug level.
func (l *callLog) nameOf(who *identity.Identity) string {
	if !who.Personal {
		return who.Name
	}
	kind, _, _ := strings.Cut(who.Name, ":")
	mac := hmac.New(sha256.New, l.pseudonymKey[:])
	_, _ = mac.Write([]byte(who.Name)) // it never fails
	return kind + ":#" + hex.EncodeToString(mac.Sum(nil)[:8])
}

// attrs are what all lines about a call have.
func (l *callLog) attrs(ctx context.Context, method string, req any, took time.Duration, st *status.Status,
	nameOf func(*identity.Identity) string,
) []slog.Attr {
	attrs := []slog.Attr{
		slog.String("method", method),
		slog.String("code", st.Code().String()),
		slog.Duration("duration", took),
	}
	if id := requestID(req); id != "" {
		attrs = append(attrs, slog.String("request_id", id))
	}
	if who := identity.FromContext(ctx); who != nil {
		attrs = append(attrs, slog.String("caller", nameOf(who)))
	}
	if l.traced {
		if id := traceID(ctx); id != "" {
			attrs = append(attrs, slog.String("trace_id", id))
		}
	}
	return attrs
}

// called logs a call with what it was about, at debug level. The request is nil if it came as a stream.
func (l *callLog) called(ctx context.Context, method string, req any, took time.Duration, err error) {
	fullName := func(who *identity.Identity) string { return who.Name }
	attrs := append(l.attrs(ctx, method, req, took, status.Convert(err), fullName), subjectAttrs(req)...)
	l.logger.LogAttrs(ctx, slog.LevelDebug, "call", attrs...)
}

// callFailed logs a failed call. The request is nil if it came as a stream.
func (l *callLog) callFailed(ctx context.Context, method string, req any, took time.Duration, err error) {
	st := status.Convert(err)
	attrs := append(l.attrs(ctx, method, req, took, st, l.nameOf), slog.String("message", st.Message()))
	if cause := errors.Unwrap(err); cause != nil {
		attrs = append(attrs, slog.String("cause", cause.Error()))
	}
	if errors.Is(err, errRateLimited) { // which is as usual
		l.write(ctx, slog.LevelInfo, &l.infos, "call failed", attrs)
		return
	}
	switch st.Code() {
	case codes.Internal, codes.Unknown, codes.DataLoss:
		l.write(ctx, slog.LevelError, &l.errors, "call failed", attrs)
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
		l.write(ctx, slog.LevelWarn, &l.warnings, "call failed", attrs)
	case codes.Unauthenticated, codes.PermissionDenied:
		l.write(ctx, slog.LevelInfo, &l.refusals, "call refused", attrs)
	default:
		l.write(ctx, slog.LevelInfo, &l.infos, "call failed", attrs)
	}
}

// loadFailed logs an error that a store should not have.
func (l *callLog) loadFailed(err error) {
	l.write(context.Background(), slog.LevelError, &l.errors, "read from the store failed",
		[]slog.Attr{slog.String("cause", err.Error())})
}

// unhealthy logs why a health check failed.
func (l *callLog) unhealthy(ctx context.Context, err error) {
	l.write(ctx, slog.LevelWarn, &l.warnings, "not healthy", []slog.Attr{slog.String("cause", err.Error())})
}

func (l *callLog) write(ctx context.Context, level slog.Level, limit *lineLimit, message string, attrs []slog.Attr) {
	if !l.logger.Enabled(ctx, level) {
		return
	}
	suppressed, ok := limit.take(time.Now())
	if !ok {
		l.metrics.logsSuppressed.Inc()
		return
	}
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed_before", suppressed))
	}
	l.logger.LogAttrs(ctx, level, message, attrs...) //nolint:sloglint // the callers' messages are constant
}

// lineLimit lets maxLinesPerSecond pass in each second.
type lineLimit struct {
	mu         sync.Mutex
	began      time.Time
	lines      int
	suppressed int
}

// take reports whether a line may be written now, and if so how many were not since the last one.
func (l *lineLimit) take(now time.Time) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.began) >= time.Second {
		l.began, l.lines = now, 0
	}
	if l.lines >= maxLinesPerSecond {
		l.suppressed++
		return 0, false
	}
	l.lines++
	suppressed, l.suppressed = l.suppressed, 0
	return suppressed, true
}
