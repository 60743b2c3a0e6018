package checker

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	guardv1 "github.com/plusone-dev/plusone/api/plusone/guard/v1"
	"github.com/plusone-dev/plusone/internal/guard"
)

// httpAsker asks over HTTP/1.1, whose connections end with a question that is too late. A connection of HTTP/2 would go
// on, to a host that may be gone.
type httpAsker struct {
	client *http.Client
	config Config
}

func dialHTTP(c Config) *httpAsker {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	return &httpAsker{config: c, client: &http.Client{
		Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: connectTimeout}).DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: c.CA, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    connectTimeout,
			Protocols:              protocols,
			MaxConnsPerHost:        c.MaxInFlight,
			MaxIdleConnsPerHost:    c.MaxInFlight,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: maxHeaderBytes,
			DisableCompression:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// The faults of an answer.
var (
	errBroken  = errors.New("the connection broke, or what came was not HTTP")
	errNotJSON = errors.New("the answer is not JSON of a CheckResponse with Content-Type application/json")
	errTooLong = fmt.Errorf("the answer has more than %d bytes", maxAnswerBytes)
)

func (a *httpAsker) ask(ctx context.Context, q guard.Question) (*guardv1.CheckResponse, error) {
	body, err := protojson.Marshal(requestOf(q))
	if err != nil {
		return nil, errors.New("the question is not UTF-8")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.config.Target.url.String(), bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the URL does not make a request")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	// A question may be repeated on another connection when the checker has just closed this one. Empty, the header
	// says so to net/http and is not sent.
	req.Header["Idempotency-Key"] = nil
	if bearer := a.config.bearer(); bearer != "" {
		req.Header.Set("Authorization", bearer)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, withoutWords(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, errNotJSON
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return nil, withoutWords(err)
	case len(text) > maxAnswerBytes:
		return nil, errTooLong
	}
	answer := &guardv1.CheckResponse{}
	// Fields of later versions are none of our business.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, answer); err != nil {
		return nil, errNotJSON
	}
	return answer, nil
}

// withoutWords leaves of an error of net/http what is the network's or of TLS. Others may quote the checker, or the URL.
func withoutWords(err error) error {
	var network *net.OpError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError // what came is not TLS
	switch {
	case errors.As(err, &network):
		return network
	case errors.As(err, &certificate):
		return certificate
	case errors.As(err, &record):
		return record
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	default:
		return errBroken
	}
}

func (a *httpAsker) close() error {
	a.client.CloseIdleConnections()
	return nil
}
