package door

import (
	"io"
	"net/http"
	"time"
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
// spends on other things does not count against the client. The connection is told
// while its client is waited for, and since when.
func paced(p pace, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		g := guestOf(r.Context())
		// What is still buffered goes out after the handler, and of a body that was not
		// read net/http reads a little first; it takes the deadlines away before the next
		// request.
		defer func() {
			now := time.Now()
			_ = rc.SetReadDeadline(now.Add(p.grace))
			_ = rc.SetWriteDeadline(now.Add(2 * p.grace)) // behind the reading
			g.awaited(inBody, now)
		}()
		if r.Body != nil && r.Body != http.NoBody {
			// In a copy: from the body of its own request net/http tells whether the client
			// waits to be asked for it, and whether it is too long to be read to its end.
			copied := *r
			copied.Body = &pacedBody{ReadCloser: r.Body, rc: rc, purse: newPurse(p, g)}
			r = &copied
		}
		next.ServeHTTP(&pacedWriter{ResponseWriter: w, rc: rc, purse: newPurse(p, g)}, r)
	})
}

// purse is the time that a client has: waiting for it spends that, bytes fill it up
// again, never beyond the grace.
type purse struct {
	pace  pace
	left  time.Duration
	guest *guest
}

func newPurse(p pace, g *guest) purse { return purse{pace: p, left: p.grace, guest: g} }

// open begins to wait for the client.
func (p *purse) open(s stage) (start time.Time) {
	start = time.Now()
	p.guest.awaited(s, start.Add(p.left-p.pace.grace))
	return start
}

// close ends that: n bytes have come or gone.
func (p *purse) close(start time.Time, n int) {
	p.guest.served()
	p.left = min(p.left-time.Since(start)+p.pace.during(n), p.pace.grace)
}

type pacedBody struct {
	io.ReadCloser
	rc    *http.ResponseController
	purse purse
}

func (b *pacedBody) Read(p []byte) (int, error) {
	start := b.purse.open(inBody)
	_ = b.rc.SetReadDeadline(start.Add(b.purse.left))
	n, err := b.ReadCloser.Read(p)
	b.purse.close(start, n)
	if n > 0 || err == io.EOF {
		b.purse.guest.forgiven()
	}
	return n, err // at the end net/http takes the deadline away itself
}

type pacedWriter struct {
	http.ResponseWriter
	rc    *http.ResponseController
	purse purse
	begun bool // the header is written
}

func (w *pacedWriter) WriteHeader(status int) {
	if status >= http.StatusOK && !w.begun {
		w.begun = true
		if w.purse.guest.mustLeave(status) {
			w.Header().Set("Connection", "close")
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *pacedWriter) Write(p []byte) (int, error) {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	start := w.purse.open(inAnswer)
	_ = w.rc.SetWriteDeadline(start.Add(w.purse.left + w.purse.pace.during(len(p))))
	n, err := w.ResponseWriter.Write(p)
	if w.purse.close(start, n); err != nil {
		w.purse.guest.reset()
	}
	return n, err
}

// Unwrap lets http.ResponseController through.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
