package server

import (
	"context"
	"crypto/tls"
	"net"
)

// Proved makes connections prove themselves as a TLS configuration asks.
func Proved(conf *tls.Config) func(context.Context, net.Conn) (net.Conn, error) {
	return func(ctx context.Context, raw net.Conn) (net.Conn, error) {
		c := tls.Server(raw, conf)
		if err := c.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		return c, nil
	}
}
