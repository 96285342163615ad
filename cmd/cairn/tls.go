package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

const (
	// maxPEM bounds a file of certificates or keys. The system's pool is a few hundred KiB.
	maxPEM = 4 << 20
	// certEvery is how often a server looks at the files of its certificate.
	certEvery = 5 * time.Second
	// certSoon is how long before its end a certificate is warned about.
	certSoon = 14 * 24 * time.Hour
)

// readPEM reads a file of at most maxPEM.
func readPEM(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > maxPEM {
		return nil, fmt.Errorf("%s has more than %d bytes: it is no file of certificates or keys", name, maxPEM)
	}
	return b, nil
}

// certificate is a server's certificate with its key. It is read anew when the
// files change, whatever changed them: contents are compared, not times, so that
// a link that was turned or a copy with an old date is seen too. What cannot be
// served leaves the pair before it in its place. Its methods may be called at
// the same time, except check, which belongs to one goroutine.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	now               func() time.Time

	current atomic.Pointer[tls.Certificate]

	// Of the goroutine that calls check.
	seen    [sha256.Size]byte // of the pair that was judged last, good or not
	trouble string            // what the log was told last of files that cannot be read
	warned  time.Time         // end of the certificate whose end was warned about
}

// loadCertificate reads the pair for the first time; one that cannot be served is
// an error.
func loadCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log, now: time.Now}
	cert, key, err := c.read()
	if err != nil {
		return nil, err
	}
	c.seen = pairSum(cert, key)
	pair, err := c.parse(cert, key)
	if err != nil {
		return nil, err
	}
	c.current.Store(pair)
	if info, err := os.Stat(keyFile); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0 {
		log.Warn("the key of the server's certificate can be read by everybody: chmod o= it", "file", keyFile)
	}
	c.tellEnd()
	return c, nil
}

func pairSum(cert, key []byte) [sha256.Size]byte {
	h := sha256.New()
	for _, b := range [][]byte{cert, key} {
		sum := sha256.Sum256(b)
		h.Write(sum[:])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func (c *certificate) read() (cert, key []byte, err error) {
	if cert, err = readPEM(c.certFile); err != nil {
		return nil, nil, fmt.Errorf("the server's certificate: %w", err)
	}
	if key, err = readPEM(c.keyFile); err != nil {
		return nil, nil, fmt.Errorf("the key of the server's certificate: %w", err)
	}
	return cert, key, nil
}

// parse makes a pair of the two files. One that has ended is not refused: a
// server that does not start helps nobody, and clients say what is wrong.
func (c *certificate) parse(cert, key []byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s are no certificate with its key: %w", c.certFile, c.keyFile, err)
	}
	return &pair, nil
}

// check looks at the files once.
func (c *certificate) check() {
	defer c.tellEnd()
	cert, key, err := c.read()
	if err != nil {
		if c.trouble != err.Error() {
			c.trouble = err.Error()
			c.log.Error("the files of the certificate cannot be read; the pair before goes on being served", "err", err)
		}
		return
	}
	c.trouble = ""
	sum := pairSum(cert, key)
	if sum == c.seen {
		return
	}
	c.seen = sum
	pair, err := c.parse(cert, key)
	if err != nil {
		// Also what is seen between the writing of one file and the other.
		c.log.Error("the new certificate cannot be served; the pair before goes on being served", "err", err)
		return
	}
	old := c.current.Load()
	if now := c.now(); now.After(pair.Leaf.NotAfter) && now.Before(old.Leaf.NotAfter) {
		c.log.Error("the new certificate has ended already; the pair before goes on being served", "ended", pair.Leaf.NotAfter)
		return
	}
	c.log.Info("a new certificate is served", "serial", pair.Leaf.SerialNumber.String(), "ends", pair.Leaf.NotAfter)
	c.current.Store(pair)
}

// tellEnd warns once of a certificate that ends soon.
func (c *certificate) tellEnd() {
	end := c.current.Load().Leaf.NotAfter
	left := end.Sub(c.now())
	if left > certSoon || c.warned.Equal(end) {
		return
	}
	c.warned = end
	if left <= 0 {
		c.log.Error("the server's certificate has ended; clients refuse it", "ended", end)
		return
	}
	c.log.Warn("the server's certificate ends soon", "ends", end)
}

// watch looks at the files until ctx ends.
func (c *certificate) watch(ctx context.Context) {
	t := time.NewTicker(certEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			c.check()
		}
	}
}

// config is for a listener. HTTP/2 is not offered: it costs about twice as much
// for bodies of this size.
func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil },
	}
}

// clientTLS is what a client believes: the certificates in a file, and nobody
// else, or what the system believes.
func clientTLS(caFile string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return cfg, nil
	}
	b, err := readPEM(caFile)
	if err != nil {
		return nil, fmt.Errorf("the certificates to believe: %w", err)
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s holds no certificate in PEM (-----BEGIN CERTIFICATE-----)", caFile)
	}
	return cfg, nil
}

// distrust says in words why a server's certificate is not believed; nil when
// that is not what err says.
func distrust(host string, err error) error {
	e, ok := errors.AsType[*tls.CertificateVerificationError](err)
	if !ok {
		return nil
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](e); ok {
		return fmt.Errorf("the certificate of %s is signed by nobody that is believed here: name its CA with --ca-cert FILE or CAIRN_CA_CERT: %w", host, e.Err)
	}
	if _, ok := errors.AsType[x509.HostnameError](e); ok {
		return fmt.Errorf("what answers at %s has a certificate for another name: use a name that is in it: %w", host, e.Err)
	}
	if _, ok := errors.AsType[x509.SystemRootsError](e); ok {
		return fmt.Errorf("this system has no pool of CAs: name the server's with --ca-cert FILE or CAIRN_CA_CERT: %w", e.Err)
	}
	return fmt.Errorf("the certificate of %s is not believed: %w", host, e.Err)
}
