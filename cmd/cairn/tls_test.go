package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// certified is a certificate for 127.0.0.1 that signs itself, as PEM, and its key.
func certified(serial int64, from, to time.Time, names ...string) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "cairn test"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, DNSNames: names}
	if len(names) == 0 {
		t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &k.PublicKey, k)
	if err != nil {
		return nil, nil, err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), nil
}

// certify NAME SERIAL [DNSNAME...] makes NAME.crt and NAME.key for a day from now.
func scriptCertify(ts *testscript.TestScript, neg bool, args []string) {
	var serial int64
	_, err := fmt.Sscan(args[1], &serial)
	ts.Check(err)
	cert, key, err := certified(serial, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour), args[2:]...)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".crt"), cert, 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), key, 0o600))
}

func TestCertificateReload(t *testing.T) {
	now := time.Now()
	day := 24 * time.Hour
	pair := func(serial int64, end time.Duration) (cert, key []byte) {
		t.Helper()
		cert, key, err := certified(serial, now.Add(-90*day), now.Add(end))
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	cert1, key1 := pair(1, 60*day)
	cert2, key2 := pair(2, 60*day)
	cert3, key3 := pair(3, -day)
	cert4, key4 := pair(4, 3*day)
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	write := func(cert, key []byte) {
		t.Helper()
		for name, b := range map[string][]byte{certFile: cert, keyFile: key} {
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			// Times say nothing: a copy that keeps them is seen too.
			if err := os.Chtimes(name, now, now); err != nil {
				t.Fatal(err)
			}
		}
	}
	var log bytes.Buffer
	write(cert1, key2)
	if _, err := loadCertificate(certFile, keyFile, slog.New(slog.NewTextHandler(&log, nil))); err == nil || !strings.Contains(err.Error(), "no certificate with its key") {
		t.Errorf("a certificate with another's key at the start: %v, want an error", err)
	}
	write(cert1, key1)
	c, err := loadCertificate(certFile, keyFile, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name      string
		cert, key []byte
		serial    int64  // served afterwards
		says      string // in the log; empty: nothing
	}{
		{"nothing has changed", cert1, key1, 1, ""},
		{"one of two files is written", cert2, key1, 1, "cannot be served"},
		{"and seen again", cert2, key1, 1, ""},
		{"the other follows", cert2, key2, 2, "a new certificate is served"},
		{"cut", cert1[:100], key1, 2, "cannot be served"},
		{"empty", nil, nil, 2, "cannot be served"},
		{"ended", cert3, key3, 2, "has ended already"},
		{"too long to be one", bytes.Repeat([]byte{'x'}, maxPEM+1), key1, 2, "cannot be read"},
		{"ends soon", cert4, key4, 4, "ends soon"},
		{"the one before", cert1, key1, 1, "a new certificate is served"},
	} {
		write(step.cert, step.key)
		log.Reset()
		c.check()
		got, err := c.config().GetCertificate(nil)
		if err != nil || got.Leaf.SerialNumber.Int64() != step.serial {
			t.Errorf("%s: serves %v, %v; want %d", step.name, got.Leaf.SerialNumber, err, step.serial)
		}
		if said := log.String(); step.says == "" && said != "" || !strings.Contains(said, step.says) {
			t.Errorf("%s: the log says %q, want %q", step.name, said, step.says)
		}
		if strings.Contains(log.String(), "PRIVATE") {
			t.Errorf("%s: the log shows a key: %s", step.name, &log)
		}
	}
	// A file that is away is told of once.
	log.Reset()
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	c.check()
	c.check()
	if n := strings.Count(log.String(), "cannot be read"); n != 1 || c.current.Load().Leaf.SerialNumber.Int64() != 1 {
		t.Errorf("without its key file: told of %d times, want once; serves %v, want 1", n, c.current.Load().Leaf.SerialNumber)
	}
}

func TestCertificateIsWatched(t *testing.T) {
	dir := t.TempDir()
	cert, key, err := certified(1, time.Unix(0, 0), time.Unix(1<<33, 0))
	if err != nil {
		t.Fatal(err)
	}
	next, nextKey, err := certified(2, time.Unix(0, 0), time.Unix(1<<33, 0))
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	write := func(cert, key []byte) {
		if err := os.WriteFile(certFile, cert, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(keyFile, key, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		write(cert, key)
		c, err := loadCertificate(certFile, keyFile, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		go c.watch(t.Context()) // ends with the test
		write(next, nextKey)
		time.Sleep(certEvery + time.Second)
		synctest.Wait()
		if got := c.current.Load().Leaf.SerialNumber.Int64(); got != 2 {
			t.Errorf("after %v certificate %d is served, want 2", certEvery, got)
		}
	})
}

// TestServeTLS: a server that runs serves the new pair to new connections, and
// nothing of a key is in a core file or among the words of its command line.
func TestServeTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	pool := x509.NewCertPool()
	write := func(serial int64) {
		t.Helper()
		cert, key, err := certified(serial, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		pool.AppendCertsFromPEM(cert)
		for name, b := range map[string][]byte{certFile: cert, keyFile: key} {
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(1)
	s, _, home := testServer(t, "--tls-cert", certFile, "--tls-key", keyFile)
	addr, ok := strings.CutPrefix(s.url, "https://")
	if !ok {
		t.Fatalf("it serves at %s", s.url)
	}
	serial := func() int64 {
		t.Helper()
		c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, NextProtos: []string{"h2", "http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		state := c.ConnectionState()
		if state.NegotiatedProtocol != "http/1.1" {
			t.Errorf("it speaks %q, want http/1.1", state.NegotiatedProtocol)
		}
		return state.PeerCertificates[0].SerialNumber.Int64()
	}
	if got := serial(); got != 1 {
		t.Fatalf("serial %d, want 1", got)
	}
	if _, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	write(2)
	for limit := time.Now().Add(4 * certEvery); serial() != 2; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the new certificate is not served")
		}
	}
	proc := fmt.Sprintf("/proc/%d/", s.cmd.Process.Pid)
	limits, err := os.ReadFile(proc + "limits")
	if err != nil {
		t.Skip(err)
	}
	if !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0 ") {
		t.Errorf("core files are possible:\n%s", limits)
	}
	words, err := os.ReadFile(proc + "cmdline")
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(home, "config", "cairn", "token"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(words, bytes.TrimSpace(token)) {
		t.Error("the token is on the command line")
	}
}
