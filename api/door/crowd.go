package door

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"cairn/store/budget"
)

// Door is the connections of several listeners together. Their number is bounded,
// and so is the memory of clients that only hold connections. Those that come when
// most places are taken find one: who has kept the server waiting longest is given
// up for them, so that no number of clients that stand still shuts out the others
// (H67). Where nobody is to be given up the newcomers wait in the kernel.
type Door struct {
	memory *budget.Share
	most   int64 // bytes of the share in use; beyond them places are made

	mu     sync.Mutex
	guests map[*guest]struct{}
}

const (
	// patience is how long every client may be waited for, however many others there
	// are; and how long one that is not waited for keeps its connection when all places
	// are taken, so that those who stand before the door get in by turns.
	patience = time.Second
	// crowdLook is how often it is looked who has used that up when all places are
	// taken.
	crowdLook = 50 * time.Millisecond
)

// New makes a door with places for as many connections as that memory holds.
func New(memory *budget.Share) *Door {
	// What is above the mark holds those that are told why they are given up, which
	// takes half a second, and keeps the requests below what may be answered at a time.
	return &Door{memory: memory, most: memory.Limit() * 3 / 4, guests: map[*guest]struct{}{}}
}

// Listen bounds the connections of listeners.
func (c *Door) Listen(ls []net.Listener) []net.Listener {
	out := make([]net.Listener, len(ls))
	for i, l := range ls {
		a := &atMost{Listener: l, crowd: c}
		a.ctx, a.close = context.WithCancel(context.Background())
		out[i] = a
	}
	return out
}

// place waits until there is memory for a connection.
func (c *Door) place(ctx context.Context) error {
	for {
		limited, cancel := context.WithTimeout(ctx, crowdLook)
		err := c.memory.Acquire(limited, budget.Connection)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		c.giveUp()
	}
}

// full reports whether all places are taken.
func (c *Door) full() bool { return c.memory.State().Used > c.memory.Limit()-budget.Connection }

// join takes a connection in that has a place.
func (c *Door) join(conn net.Conn) *guest {
	g := &guest{Conn: conn, crowd: c, since: time.Now(), came: time.Now()}
	c.mu.Lock()
	c.guests[g] = struct{}{}
	c.mu.Unlock()
	if c.memory.State().Used > c.most {
		c.giveUp()
	}
	return g
}

// giveUp ends those connections whose clients are waited for longest: as many as are
// above the mark, and a few more, so that not everyone who comes has to look.
func (c *Door) giveUp() {
	before := time.Now().Add(-patience)
	slow, leaving := c.slow(before)
	n := (c.memory.State().Used-c.most)/budget.Connection - int64(leaving) + c.most/budget.Connection/64 + 1
	for _, s := range slow[:max(0, min(int(n), len(slow)))] {
		s.giveUp(before)
	}
}

type slowGuest struct {
	*guest
	since time.Time
}

// slow lists the connections that have been waited for since before, those first
// that have been so longest, and counts those that are given up and not gone yet.
func (c *Door) slow(before time.Time) (out []slowGuest, leaving int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for g := range c.guests {
		since, given := g.waited()
		if given {
			leaving++
		} else if !since.IsZero() && since.Before(before) {
			out = append(out, slowGuest{g, since})
		}
	}
	slices.SortFunc(out, func(a, b slowGuest) int { return a.since.Compare(b.since) })
	return out, leaving
}

// atMost is a listener whose connections are of a crowd.
type atMost struct {
	net.Listener
	crowd *Door
	ctx   context.Context // done when the listener is closed
	close context.CancelFunc
}

func (l *atMost) Accept() (net.Conn, error) {
	if err := l.crowd.place(l.ctx); err != nil {
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		l.crowd.memory.Release(budget.Connection)
		return nil, err
	}
	return l.crowd.join(c), nil
}

func (l *atMost) Close() error {
	l.close()
	return l.Listener.Close()
}

// stage is what a client is waited for.
type stage int32

const (
	inHeader stage = iota // a request and its header
	inBody
	inAnswer // that it takes what it asked for
)

// guest is one connection, and since when its client is waited for. The methods that
// say so do nothing for a nil guest.
type guest struct {
	net.Conn
	crowd *Door
	once  sync.Once
	came  time.Time

	mu    sync.Mutex
	stage stage
	since time.Time // zero: it is not waited for
	given bool      // it was given up
}

// awaited says that the client is waited for.
func (g *guest) awaited(s stage, since time.Time) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stage, g.since = s, since
}

// served says that it is not any more.
func (g *guest) served() { g.awaited(inHeader, time.Time{}) }

// mustLeave reports whether the connection is to end with this answer: others wait for
// a place, and it has had its time, or could do nothing with it.
func (g *guest) mustLeave(status int) bool {
	return g != nil && g.crowd.full() && (time.Since(g.came) > patience || status == http.StatusServiceUnavailable)
}

// forgiven takes back that it was given up: what it was waited for had come already.
func (g *guest) forgiven() {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.given {
		g.given = false
		_ = g.Conn.SetReadDeadline(time.Time{}) // whoever reads on sets another
	}
}

func (g *guest) waited() (since time.Time, given bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.since, g.given
}

// giveUp ends the connection if its client is still waited for. Who sends a body is
// told so; who has not asked for anything yet, or does not take what it asked for,
// is not.
func (g *guest) giveUp(before time.Time) {
	switch s, ok := g.condemn(before); {
	case !ok, s == inBody:
		return
	case s == inAnswer:
		g.reset()
	}
	g.Close()
}

// reset makes closing drop what the kernel still has for the client, who would keep
// it there as long as it likes.
func (g *guest) reset() {
	if g == nil {
		return
	}
	if c, ok := g.Conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0) // at worst it is kept a while
	}
}

// condemn marks the connection as given up, and says in which stage.
func (g *guest) condemn(before time.Time) (s stage, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.given || g.since.IsZero() || !g.since.Before(before) {
		return 0, false
	}
	g.given = true
	if g.stage == inBody {
		_ = g.Conn.SetReadDeadline(time.Unix(1, 0)) // one that is closed needs none
	}
	return g.stage, true
}

// SetReadDeadline does nothing for a connection that was given up: its time is over.
func (g *guest) SetReadDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.given {
		return nil
	}
	return g.Conn.SetReadDeadline(t)
}

// CloseWrite lets net/http end its side before the other's.
func (g *guest) CloseWrite() error {
	if c, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// Close gives the place back, once.
func (g *guest) Close() error {
	g.once.Do(func() {
		g.crowd.mu.Lock()
		delete(g.crowd.guests, g)
		g.crowd.mu.Unlock()
		g.crowd.memory.Release(budget.Connection)
	})
	return g.Conn.Close()
}

type guestKey struct{}

// asGuest finds the connection under TLS.
func asGuest(c net.Conn) *guest {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	g, _ := c.(*guest)
	return g
}

// inContext is an http.Server's ConnContext.
func inContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, guestKey{}, asGuest(c))
}

func guestOf(ctx context.Context) *guest {
	g, _ := ctx.Value(guestKey{}).(*guest)
	return g
}

// between is an http.Server's ConnState: it sees where requests begin and end.
func between(c net.Conn, s http.ConnState) {
	switch s {
	case http.StateActive:
		asGuest(c).served()
	case http.StateIdle:
		// Who was refused comes back after as long as Retry-After said, and is waited for
		// from then on.
		asGuest(c).awaited(inHeader, time.Now().Add(patience))
	}
}
