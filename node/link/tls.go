package link

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"
)

// Public is the public half of an end's key. It is compared, never chained to anything.
type Public [ed25519.PublicKeySize]byte

// String is how it is printed and given by hand: 43 characters of base64.
func (p Public) String() string { return base64.RawURLEncoding.EncodeToString(p[:]) }

// MarshalText implements encoding.TextMarshaler.
func (p Public) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Public) UnmarshalText(b []byte) error {
	k, err := base64.RawURLEncoding.Strict().AppendDecode(nil, b)
	if err != nil || len(k) != len(p) {
		return fmt.Errorf("%q is no key of a link", cut(string(b), 80))
	}
	*p = Public(k)
	return nil
}

// Key is an end's secret. It does not print itself.
type Key struct{ private ed25519.PrivateKey }

// NewKey draws a key.
func NewKey(random io.Reader) (Key, error) {
	var seed [ed25519.SeedSize]byte
	if _, err := io.ReadFull(random, seed[:]); err != nil {
		return Key{}, fmt.Errorf("draw a key: %w", err)
	}
	return KeyFromSeed(seed), nil
}

// KeyFromSeed makes the key that follows from 32 secret bytes.
func KeyFromSeed(seed [32]byte) Key { return Key{ed25519.NewKeyFromSeed(seed[:])} }

// Seed is what the key follows from. It is as secret.
func (k Key) Seed() []byte { return k.private.Seed() }

// Public is the half that the other end pins.
func (k Key) Public() Public { return Public(k.private.Public().(ed25519.PublicKey)) }

// Format implements fmt.Formatter: no verb prints a secret.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "link.Key(hidden)") }

// certificate is the empty shell in which TLS carries the key. It is the same each time.
func (k Key) certificate() (tls.Certificate, error) {
	shell := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cairn link"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)} // RFC 5280, 4.1.2.5: no end
	der, err := x509.CreateCertificate(nil, shell, shell, k.private.Public(), k.private)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("link: make a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.private}, nil
}

// ErrStranger says that the other end has another key than the one that was pinned.
var ErrStranger = errors.New("the other end has another key")

// config is what both ends have in common: TLS 1.3, no tickets, and the other end's
// public key, which is all that is looked at.
func (k Key) config(peer Public) (*tls.Config, error) {
	cert, err := k.certificate()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{ALPN}, SessionTicketsDisabled: true,
		// Chains and names prove nothing here; VerifyConnection, which runs for every
		// connection, compares the key.
		InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			switch {
			case s.NegotiatedProtocol != ALPN:
				return fmt.Errorf("the other end speaks %q, not %s", cut(s.NegotiatedProtocol, 40), ALPN)
			case len(s.PeerCertificates) != 1:
				return fmt.Errorf("%w: %d certificates", ErrStranger, len(s.PeerCertificates))
			}
			pub, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
			if !ok || !bytes.Equal(pub, peer[:]) {
				return ErrStranger
			}
			return nil
		},
	}, nil
}

// ServerConfig is a node's: it hears nobody but who has the gateway's key.
func (k Key) ServerConfig(gateway Public) (*tls.Config, error) { return k.config(gateway) }

// ClientConfig is a gateway's: it speaks with nobody but who has the node process's key.
func (k Key) ClientConfig(node Public) (*tls.Config, error) {
	c, err := k.config(node)
	if err == nil {
		c.ServerName = "cairn-node" // required by nobody, looked at by nobody
	}
	return c, err
}
