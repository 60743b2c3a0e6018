// Package certs serves TLS by certificates from files, which may be replaced while connections come in. A new certificate
// is for connections that are made after it; those that are there go on.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/reload"
)

// Options say which files. Certificate and Key are needed.
type Options struct {
	// Certificate is a chain in PEM, that of the server first, and Key its private key.
	Certificate, Key string
	// ClientCA are certificates in PEM, one of which must have signed that of each client. Empty asks clients for none.
	ClientCA string
	Logger   *slog.Logger
	// Registry takes the expiry of the certificates.
	Registry prometheus.Registerer
	// Metrics, if not nil, count changes of the files.
	Metrics *reload.Metrics
}

// Certificates are those in force. Its methods may be called concurrently.
type Certificates struct {
	server  *reload.File[*tls.Certificate]
	clients *reload.File[*authorities] // nil if clients need no certificate
}

// authorities are those that sign for clients.
type authorities struct {
	pool    *x509.CertPool
	expires time.Time // when the first of them does
}

// Open loads the certificates, and follows their files until Close. It fails if they cannot be used.
func Open(o Options) (*Certificates, error) {
	server, err := reload.OpenPair(reload.Options{
		Name: "tls_certificate", Path: o.Certificate, Logger: o.Logger, Metrics: o.Metrics,
	}, o.Key, parsePair)
	if err != nil {
		return nil, err
	}
	c := &Certificates{server: server}
	c.expiry(o.Registry, "server", func() time.Time { return server.Get().Leaf.NotAfter })
	if o.ClientCA == "" {
		return c, nil
	}
	c.clients, err = reload.Open(reload.Options{
		Name: "tls_client_ca", Path: o.ClientCA, Logger: o.Logger, Metrics: o.Metrics,
	}, parseAuthorities)
	if err != nil {
		server.Close()
		return nil, err
	}
	c.expiry(o.Registry, "client_ca", func() time.Time { return c.clients.Get().expires })
	return c, nil
}

func (c *Certificates) expiry(registry prometheus.Registerer, certificate string, read func() time.Time) {
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "plusone_tls_certificate_expiry_timestamp_seconds", Help: "When the certificate in force expires, the earliest if there are several.",
		ConstLabels: prometheus.Labels{"certificate": certificate},
	}, func() float64 { return float64(read().Unix()) }))
}

// Close ends the following of files. Configurations stay usable.
func (c *Certificates) Close() {
	c.server.Close()
	if c.clients != nil {
		c.clients.Close()
	}
}

// GRPC is how gRPC is served: a client must have a certificate if there are authorities for them.
func (c *Certificates) GRPC() *tls.Config { return c.config("h2", c.clients != nil) }

// HTTP is how HTTP/1.1 is served. Clients need no certificate, as those that look after health have none.
func (c *Certificates) HTTP() *tls.Config { return c.config("http/1.1", false) }

// config asks for what is in force at each handshake.
func (c *Certificates) config(protocol string, clients bool) *tls.Config {
	base := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{protocol},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.server.Get(), nil
		},
		// A resumed session would be let in by what was in force when it began, and connections are made to last.
		SessionTicketsDisabled: true,
	}
	if !clients {
		return base
	}
	base.ClientAuth = tls.RequireAndVerifyClientCert
	config := base.Clone()
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := base.Clone()
		now.ClientCAs = c.clients.Get().pool
		return now, nil
	}
	return config
}

func parsePair(certificate, key []byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, err
		}
	}
	if time.Now().After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate expired at %s", pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	return &pair, nil
}

func parseAuthorities(data []byte) (*authorities, error) {
	a := &authorities{pool: x509.NewCertPool()}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, errors.New("it must hold certificates only")
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if !certificate.IsCA {
			return nil, fmt.Errorf("the certificate of %q is not that of an authority", certificate.Subject.CommonName)
		}
		a.pool.AddCert(certificate)
		if a.expires.IsZero() || certificate.NotAfter.Before(a.expires) {
			a.expires = certificate.NotAfter
		}
	}
	if a.expires.IsZero() {
		return nil, errors.New("it has no certificate in PEM")
	}
	return a, nil
}

// Reload looks at the files at once. An error means that what is there now is not in force.
func (c *Certificates) Reload() error {
	err := c.server.Reload()
	if c.clients != nil {
		err = errors.Join(err, c.clients.Reload())
	}
	return err
}
