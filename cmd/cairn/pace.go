package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"cairn/store/budget"
)

// pace bounds how slowly a client may send and take a body (H67). http.Server
// can only bound the whole request, which would forbid large objects.
type pace struct {
	grace time.Duration // a client may pause so long
	rate  int64         // bytes per second that it must reach otherwise
}

var defaultPace = pace{grace: 30 * time.Second, rate: 16 << 10}

// during is the time that n bytes may take beyond the grace.
func (p pace) during(n int) time.Duration {
	return time.Duration(n) * time.Second / time.Duration(p.rate)
}

// paced makes bodies in both directions keep the pace. Time that the handler
// spends on other things does not count against the client.
func paced(p pace, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		// What is still buffered goes out after the handler, and of a body that was not
		// read net/http reads a little first; it takes the deadlines away before the next
		// request.
		defer func() {
			now := time.Now()
			_ = rc.SetReadDeadline(now.Add(p.grace))
			_ = rc.SetWriteDeadline(now.Add(2 * p.grace)) // behind the reading
		}()
		if r.Body != nil && r.Body != http.NoBody {
			// In a copy: from the body of its own request net/http tells whether the client
			// waits to be asked for it, and whether it is too long to be read to its end.
			copied := *r
			copied.Body = &pacedBody{ReadCloser: r.Body, rc: rc, pace: p, left: p.grace}
			r = &copied
		}
		next.ServeHTTP(&pacedWriter{ResponseWriter: w, rc: rc, pace: p}, r)
	})
}

// pacedBody gives a client a purse of time: waiting spends it, bytes fill it up
// again, never beyond the grace.
type pacedBody struct {
	io.ReadCloser
	rc   *http.ResponseController
	pace pace
	left time.Duration
}

func (b *pacedBody) Read(p []byte) (int, error) {
	start := time.Now()
	_ = b.rc.SetReadDeadline(start.Add(b.left))
	n, err := b.ReadCloser.Read(p)
	b.left = min(b.left-time.Since(start)+b.pace.during(n), b.pace.grace)
	return n, err // at the end net/http takes the deadline away itself
}

type pacedWriter struct {
	http.ResponseWriter
	rc   *http.ResponseController
	pace pace
}

func (w *pacedWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(w.pace.grace + w.pace.during(len(p))))
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController through.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// atMost bounds the connections of several listeners together, and so the memory
// of clients that only hold connections; further ones wait in the kernel.
type atMost struct {
	net.Listener
	memory *budget.Share
	ctx    context.Context // done when the listener is closed
	close  context.CancelFunc
}

func limitListeners(ls []net.Listener, memory *budget.Share) []net.Listener {
	out := make([]net.Listener, len(ls))
	for i, l := range ls {
		a := &atMost{Listener: l, memory: memory}
		a.ctx, a.close = context.WithCancel(context.Background())
		out[i] = a
	}
	return out
}

func (l *atMost) Accept() (net.Conn, error) {
	if err := l.memory.Acquire(l.ctx, budget.Connection); err != nil {
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		l.memory.Release(budget.Connection)
		return nil, err
	}
	return &counted{Conn: c, memory: l.memory}, nil
}

func (l *atMost) Close() error {
	l.close()
	return l.Listener.Close()
}

// counted gives its memory back when it is closed.
type counted struct {
	net.Conn
	memory *budget.Share
	once   sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { c.memory.Release(budget.Connection) })
	return c.Conn.Close()
}
