// Package server lets a gateway on another host use nodes of this process. It speaks the
// gateway's language, as docs/formats/node-link.md has it, and hands what it is asked to
// the nodes it was given; it keeps nothing itself but who asked what.
//
// A [Server] belongs to one cluster. Who may speak with it is decided by the listener it
// is given ([Listen]); behind that, everybody is the gateway.
package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/semaphore"

	"cairn/id"
	"cairn/node"
	"cairn/node/link"
	"cairn/pack"
)

// Config describes a server. A zero optional field means its default.
type Config struct {
	Cluster id.Cluster   // required
	Log     *slog.Logger // default: nowhere
	// Memory bounds the bytes of shards and calls that are held for one node; 192 MiB. It
	// is taken before anything is read, and held until the disk has answered.
	Memory int64
	// Requests bounds how many requests of one node are served at a time; 48.
	Requests int
}

const (
	patience   = time.Second      // how long a request waits for memory before it is told to come again
	bodyPace   = 5 * time.Second  // 64 KiB of a body must come, or go, within that
	callsWait  = 10 * time.Second // a request of calls must be there whole
	answerWait = 10 * time.Second // an answer must be taken
	longest    = 10 * time.Minute // no asker waits longer
)

// Server serves nodes. Its methods may be called at the same time.
type Server struct {
	cfg    Config
	run    uint64 // drawn at the start: two machines under one identity differ in it
	device func(uint64) uint64
	echo   *echo.Echo
	pool   buffers

	mu    sync.RWMutex
	desks map[id.Node]*desk
}

// desk is one node with those who wait for it.
type desk struct {
	nid      id.Node
	st       node.Store
	bytes    *semaphore.Weighted
	requests *semaphore.Weighted
	ledgers  ledgers
}

// New makes a server without nodes.
func New(cfg Config) (*Server, error) {
	if cfg.Cluster.IsZero() {
		return nil, errors.New("node server: Config.Cluster is required")
	}
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.Memory = cmp.Or(cfg.Memory, 192<<20)
	cfg.Requests = cmp.Or(cfg.Requests, 48)
	if cfg.Memory < pack.MaxShardSize || cfg.Requests < 1 {
		return nil, fmt.Errorf("node server: Config.Memory of %d bytes and %d requests: a shard has up to %d", cfg.Memory, cfg.Requests, pack.MaxShardSize)
	}
	var run [8]byte
	if _, err := rand.Read(run[:]); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, run: binary.LittleEndian.Uint64(run[:]), device: deviceOf(), desks: map[id.Node]*desk{}, echo: echo.New()}
	e := s.echo
	e.HideBanner, e.HidePort = true, true
	e.HTTPErrorHandler = func(err error, c echo.Context) {
		status := http.StatusInternalServerError
		var he *echo.HTTPError
		if errors.As(err, &he) {
			status = he.Code
		} else {
			s.cfg.Log.Error("a request of a gateway failed", "err", err)
		}
		if !c.Response().Committed {
			_ = c.NoContent(status)
		}
	}
	at := "/" + strconv.Itoa(link.Version) + "/:node/"
	e.POST(at+"calls", s.calls)
	e.PUT(at+"shards/:pack/:index", s.putShard)
	e.GET(at+"shards/:pack/:index", s.getShard)
	e.GET(link.HelloPath, s.hello)
	return s, nil
}

// Set gives the server a node; one of the same ID that it had is served no more. The
// caller opens and closes nodes. A nil store is a node whose directory is not open: whoever
// asks is told to come again.
func (s *Server) Set(n id.Node, st node.Store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.desks[n] = &desk{nid: n, st: st, bytes: semaphore.NewWeighted(s.cfg.Memory), requests: semaphore.NewWeighted(int64(s.cfg.Requests))}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.echo.ServeHTTP(w, r) }

// Serve answers what comes over l until ctx is over, then waits up to a minute for what
// it has begun. l is closed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	hs := &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: link.MaxHeader,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug)}
	ended := make(chan error, 1)
	go func() { ended <- hs.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err := hs.Shutdown(last)
	if err != nil {
		err = errors.Join(err, hs.Close())
	}
	if serr := <-ended; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

func (s *Server) hello(c echo.Context) error {
	h := link.Hello{Versions: []int{link.Version}, Cluster: s.cfg.Cluster}
	s.mu.RLock()
	for n, d := range s.desks {
		h.Nodes = append(h.Nodes, link.HelloEntry{Node: n, Open: d.st != nil})
	}
	s.mu.RUnlock()
	slices.SortFunc(h.Nodes, func(a, b link.HelloEntry) int { return a.Node.Compare(b.Node) })
	return c.JSON(http.StatusOK, h)
}

// begin finds the node a request is about, and room for what it brings and takes away.
// done gives the room back.
func (s *Server) begin(c echo.Context, size int64) (d *desk, done func(), err error) {
	n, err := id.ParseNode(c.Param("node"))
	if err != nil {
		return nil, nil, echo.NewHTTPError(http.StatusBadRequest)
	}
	s.mu.RLock()
	d = s.desks[n]
	s.mu.RUnlock()
	if d == nil {
		return nil, nil, echo.NewHTTPError(http.StatusNotFound)
	}
	c.Response().Header().Set(link.NodeHeader, n.String()+" "+strconv.FormatUint(s.run, 16))
	if d.st == nil || !d.requests.TryAcquire(1) {
		return nil, nil, echo.NewHTTPError(http.StatusServiceUnavailable)
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), patience)
	defer cancel()
	if err := d.bytes.Acquire(ctx, size); err != nil {
		d.requests.Release(1)
		return nil, nil, echo.NewHTTPError(http.StatusServiceUnavailable)
	}
	return d, func() {
		d.bytes.Release(size)
		d.requests.Release(1)
	}, nil
}

// bodyLength is how long the body of a request says it is.
func bodyLength(c echo.Context, most int64) (int64, error) {
	r := c.Request()
	switch {
	case r.ContentLength < 0 || len(r.TransferEncoding) > 0:
		return 0, echo.NewHTTPError(http.StatusLengthRequired)
	case r.ContentLength > most:
		return 0, echo.NewHTTPError(http.StatusRequestEntityTooLarge)
	case r.ContentLength == 0:
		return 0, echo.NewHTTPError(http.StatusBadRequest)
	}
	return r.ContentLength, nil
}

// within is how long the asker waits.
func within(ms uint64) time.Duration {
	if ms == 0 || ms > uint64(longest.Milliseconds()) {
		return longest
	}
	return time.Duration(ms) * time.Millisecond
}

func withinHeader(c echo.Context) time.Duration {
	ms, _ := strconv.ParseUint(c.Request().Header.Get(link.WithinHeader), 10, 64)
	return within(ms)
}

// calls answers a request of calls.
func (s *Server) calls(c echo.Context) error {
	arrived := time.Now()
	size, err := bodyLength(c, link.MaxBody)
	if err != nil {
		return err
	}
	room, err := strconv.ParseUint(c.Request().Header.Get(link.RoomHeader), 10, 32)
	if err != nil || room > link.MaxAnswers {
		return echo.NewHTTPError(http.StatusBadRequest)
	}
	d, done, err := s.begin(c, size+int64(room))
	if err != nil {
		return err
	}
	defer done()
	rc := http.NewResponseController(c.Response())
	_ = rc.SetReadDeadline(arrived.Add(callsWait))
	body := make([]byte, size)
	if _, err := io.ReadFull(c.Request().Body, body); err != nil {
		return echo.NewHTTPError(http.StatusBadRequest)
	}
	_ = rc.SetReadDeadline(time.Time{})
	raw, err := link.Split(body)
	if err != nil {
		return echo.NewHTTPError(http.StatusBadRequest)
	}
	parsed := make([]link.Call, len(raw))
	bad := make([]error, len(raw))
	need := 0
	for i := range raw {
		if parsed[i], bad[i] = link.ParseCall(raw[i]); bad[i] == nil && !parsed[i].Op.Valid() {
			bad[i] = fmt.Errorf("%w: %v", link.ErrMalformed, parsed[i].Op)
		}
		need += parsed[i].MaxAnswer()
	}
	if need > int(room) {
		return echo.NewHTTPError(http.StatusBadRequest)
	}
	answers := make(chan link.Answer, len(raw))
	var all sync.WaitGroup
	defer all.Wait() // what has begun holds the request's room until the disk has answered
	for i := range raw {
		call := &parsed[i]
		all.Go(func() {
			a := link.Answer{No: call.No}
			if bad[i] != nil {
				a.Fail(bad[i])
				a.Code = link.CodeUnknownCall
			} else if err := s.answer(c.Request().Context(), d, call, arrived, &a.Result); err != nil {
				a.Result = link.Result{}
				a.Fail(err)
				if errors.Is(err, link.ErrNotBegun) {
					a.Code = link.CodeNotBegun
				}
			}
			answers <- a
		})
	}
	c.Response().Header().Set(echo.HeaderContentType, echo.MIMEOctetStream)
	c.Response().WriteHeader(http.StatusOK)
	var out []byte
	for left := len(raw); left > 0; {
		a := <-answers
		for more := true; more; { // what is ready goes together
			out = link.AppendAnswer(out, &a)
			left--
			select {
			case a = <-answers:
			default:
				more = false
			}
		}
		_ = rc.SetWriteDeadline(time.Now().Add(answerWait))
		if _, err := c.Response().Write(out); err != nil {
			return nil // nobody listens any more
		}
		if left > 0 {
			if err := rc.Flush(); err != nil {
				return nil
			}
		}
		out = out[:0]
	}
	return nil
}

// answer carries out one call.
func (s *Server) answer(ctx context.Context, d *desk, c *link.Call, arrived time.Time, out *link.Result) (err error) {
	deadline := arrived.Add(within(uint64(c.Within)))
	if time.Now().After(deadline) {
		return link.ErrNotBegun
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if c.Op.Changes() {
		if c.Epoch == 0 || c.Writer.IsZero() || c.Generation == 0 {
			return fmt.Errorf("%w: %v without an authority", link.ErrMalformed, c.Op)
		}
		if c.Op == link.OpSettle {
			return d.ledgers.settle(ctx, c.Authority(), c.Generation)
		}
		over, err := d.ledgers.begin(c.Authority(), c.Generation)
		if err != nil {
			return err
		}
		defer over()
		// What changes something is over when the node says so, not when its asker has
		// stopped waiting.
		ctx = context.WithoutCancel(ctx)
	}
	st, by, k := d.st, c.Authority(), c.Key()
	switch c.Op {
	case link.OpPut:
		out.Instance, err = put(ctx, st, by, c.Why, k, c.Body)
	case link.OpRead:
		if c.Len > link.SmallBody {
			return fmt.Errorf("%w: a call that reads %d bytes", link.ErrMalformed, c.Len)
		}
		out.Body = make([]byte, c.Len)
		err = st.Read(ctx, k, c.Off, out.Body)
	case link.OpStat:
		var (
			i node.Info
			h pack.Header
		)
		if i, h, err = st.Stat(ctx, k); err == nil {
			info := link.OfInfo(i)
			out.Info, out.Header = &info, h.Append(nil)
		}
	case link.OpVerify:
		err = st.Verify(ctx, k)
	case link.OpDelete:
		err = st.Delete(ctx, by, k, c.Instance)
	case link.OpUndelete:
		err = st.Undelete(ctx, by, k, c.Instance)
	case link.OpList:
		if c.Len > link.MaxPage {
			return fmt.Errorf("%w: a list of %d entries", link.ErrMalformed, c.Len)
		}
		var l []node.Info
		l, err = st.List(ctx, k, int(c.Len))
		for i := range l {
			out.Infos = append(out.Infos, link.OfInfo(l[i]))
		}
	case link.OpPromise:
		err = st.Promise(ctx, by)
	case link.OpPromised:
		var a node.Authority
		a, err = st.Promised(ctx)
		out.Epoch, out.Writer = a.Epoch, a.Writer
	case link.OpListLog:
		err = listLog(ctx, st, c, out)
	case link.OpWriteFile:
		err = st.WriteFile(ctx, by, node.File(c.File), c.Body)
	case link.OpReadFile:
		out.Body, err = st.ReadFile(ctx, node.File(c.File))
		if err == nil && len(out.Body) > link.MaxFile {
			err = fmt.Errorf("%w: a small file of %d bytes", node.ErrDamaged, len(out.Body))
		}
	case link.OpUsage:
		var u node.Usage
		if u, err = st.Usage(ctx); err == nil {
			u.Device = s.device(u.Device)
			out.Usage = link.OfUsage(u)
		}
	}
	return err
}

func listLog(ctx context.Context, st node.Store, c *link.Call, out *link.Result) error {
	if c.Len > link.MaxLogPage {
		return fmt.Errorf("%w: a list of %d log shards", link.ErrMalformed, c.Len)
	}
	var after *node.Found
	if c.After != nil {
		f, err := c.After.Node()
		if err != nil {
			return fmt.Errorf("%w: %w", link.ErrMalformed, err)
		}
		after = &f
	}
	l, err := st.ListLog(ctx, c.From, after, int(c.Len))
	if err != nil {
		return err
	}
	if len(l) > int(c.Len)+link.MaxDamaged {
		return fmt.Errorf("%w: %d log shards are damaged, more than fit into a list", node.ErrUnavailable, len(l)-int(c.Len))
	}
	for i := range l {
		out.Entries = append(out.Entries, link.OfFound(&l[i]))
	}
	return nil
}

// put hands over a shard, which must be the one that the request names.
func put(ctx context.Context, st node.Store, by node.Authority, why uint8, k node.Key, b []byte) (id.Instance, error) {
	if node.Purpose(why) > node.ForStart {
		return 0, fmt.Errorf("%w: a put for purpose %d", link.ErrMalformed, why)
	}
	h, err := pack.ParseHeader(b)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", node.ErrDamaged, err)
	}
	if h.Pack != k.Pack || h.Index != k.Index {
		return 0, fmt.Errorf("%w: shard %v/%d where the request names %v", node.ErrDamaged, h.Pack, h.Index, k)
	}
	at := min(h.BodyOffset(), len(b))
	return st.Put(ctx, by, node.Purpose(why), node.Shard{Head: b[:at:at], Body: b[at:]})
}

// shardOf is the shard that a path names.
func shardOf(c echo.Context) (k node.Key, err error) {
	if k.Pack, err = id.ParsePack(c.Param("pack")); err != nil {
		return k, echo.NewHTTPError(http.StatusBadRequest)
	}
	i, err := strconv.ParseUint(c.Param("index"), 10, 8)
	if err != nil {
		return k, echo.NewHTTPError(http.StatusBadRequest)
	}
	k.Index = uint8(i)
	return k, nil
}

// reply sends the answer to a request of its own.
func reply(c echo.Context, status int, a *link.Answer) error {
	_ = http.NewResponseController(c.Response()).SetWriteDeadline(time.Now().Add(answerWait))
	return c.Blob(status, echo.MIMEOctetStream, link.AppendAnswer(nil, a))
}

func (s *Server) putShard(c echo.Context) error {
	arrived := time.Now()
	k, err := shardOf(c)
	if err != nil {
		return err
	}
	why, err := strconv.ParseUint(c.QueryParam("why"), 10, 8)
	if err != nil {
		return echo.NewHTTPError(http.StatusBadRequest)
	}
	by, err := link.ParseAuthority(c.Request().Header.Get(link.AuthorityHeader))
	if err != nil || by.Epoch == 0 || by.Writer.IsZero() {
		return echo.NewHTTPError(http.StatusBadRequest)
	}
	gen, err := strconv.ParseUint(c.Request().Header.Get(link.GenerationHeader), 10, 64)
	if err != nil || gen == 0 {
		return echo.NewHTTPError(http.StatusBadRequest)
	}
	size, err := bodyLength(c, pack.MaxShardSize)
	if err != nil {
		return err
	}
	d, done, err := s.begin(c, size)
	if err != nil {
		return err
	}
	defer done()
	var a link.Answer
	over, err := d.ledgers.begin(by, gen)
	if err != nil {
		a.Fail(err)
		a.Code = link.CodeNotBegun
		return reply(c, http.StatusUnprocessableEntity, &a)
	}
	defer over()
	b := s.pool.get(int(size))
	defer s.pool.put(b)
	rc := http.NewResponseController(c.Response())
	for at := 0; at < len(b); {
		_ = rc.SetReadDeadline(time.Now().Add(bodyPace))
		n, err := io.ReadFull(c.Request().Body, b[at:min(at+64<<10, len(b))])
		if err != nil {
			return echo.NewHTTPError(http.StatusBadRequest) // it was given up, or crawls: nothing was begun
		}
		at += n
	}
	_ = rc.SetReadDeadline(time.Time{})
	if time.Since(arrived) > withinHeader(c) {
		a.Fail(link.ErrNotBegun)
		a.Code = link.CodeNotBegun
		return reply(c, http.StatusUnprocessableEntity, &a)
	}
	if a.Result.Instance, err = put(context.WithoutCancel(c.Request().Context()), d.st, by, uint8(why), k, b); err != nil {
		a.Fail(err)
		return reply(c, http.StatusUnprocessableEntity, &a)
	}
	return reply(c, http.StatusOK, &a)
}

func (s *Server) getShard(c echo.Context) error {
	k, err := shardOf(c)
	if err != nil {
		return err
	}
	off, err1 := strconv.ParseInt(c.QueryParam("off"), 10, 64)
	size, err2 := strconv.ParseUint(c.QueryParam("len"), 10, 32)
	if err1 != nil || err2 != nil || size == 0 || size > pack.MaxShardSize {
		return echo.NewHTTPError(http.StatusBadRequest)
	}
	d, done, err := s.begin(c, int64(size))
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(c.Request().Context(), withinHeader(c))
	defer cancel()
	b := s.pool.get(int(size))
	defer s.pool.put(b)
	if err := d.st.Read(ctx, k, off, b); err != nil {
		var a link.Answer
		a.Fail(err)
		return reply(c, http.StatusUnprocessableEntity, &a)
	}
	h := c.Response().Header()
	h.Set(echo.HeaderContentType, echo.MIMEOctetStream)
	h.Set(echo.HeaderContentLength, strconv.FormatUint(size, 10))
	c.Response().WriteHeader(http.StatusOK)
	rc := http.NewResponseController(c.Response())
	for at := 0; at < len(b); {
		_ = rc.SetWriteDeadline(time.Now().Add(bodyPace))
		n, err := c.Response().Write(b[at:min(at+256<<10, len(b))])
		if err != nil {
			return nil // nobody listens any more
		}
		at += n
	}
	return nil
}

// deviceOf makes numbers of devices differ between hosts, and not between processes of
// one: they are hashed with the host's boot ID.
func deviceOf() func(uint64) uint64 {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		name, _ := os.Hostname()
		boot = []byte(name)
	}
	text := strings.TrimSpace(string(boot))
	return func(dev uint64) uint64 {
		h := fnv.New64a()
		_, _ = fmt.Fprintf(h, "%s %d", text, dev)
		return h.Sum64()
	}
}

// buffers keeps memory for shards, by powers of two: fresh memory is dear.
type buffers struct{ class [26]sync.Pool }

func (p *buffers) get(n int) []byte {
	c := classOf(n)
	if b, ok := p.class[c].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, 1<<c)
}

func (p *buffers) put(b []byte) {
	b = b[:0]
	p.class[classOf(cap(b))].Put(&b)
}

func classOf(n int) int {
	c := 12
	for 1<<c < n {
		c++
	}
	return c
}

// Listen returns a listener whose connections have proved, within 5 seconds, that they
// have the gateway's key: conf is [link.Key.ServerConfig]'s. At most strangers of them may
// be proving it at a time, at most friends be open that have.
func Listen(l net.Listener, conf handshaker, friends, strangers int) net.Listener {
	g := &gate{Listener: l, conf: conf, proved: make(chan net.Conn), ended: make(chan struct{}),
		strangers: make(chan struct{}, strangers), friends: make(chan struct{}, friends)}
	go g.run()
	return g
}

// handshaker makes a proved connection of a raw one, or an error.
type handshaker func(ctx context.Context, raw net.Conn) (net.Conn, error)

type gate struct {
	net.Listener
	conf               handshaker
	proved             chan net.Conn
	ended              chan struct{} // closed when run is over
	err                error         // of run, behind ended
	strangers, friends chan struct{}
	closing            atomic.Bool
}

const proveWithin = 5 * time.Second

func (g *gate) run() {
	defer close(g.ended)
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for {
		raw, err := g.Listener.Accept()
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() && !g.closing.Load() {
				continue
			}
			if g.closing.Load() {
				err = net.ErrClosed
			}
			g.err = err
			return
		}
		select {
		case g.strangers <- struct{}{}:
		default:
			raw.Close() // too many who have proved nothing
			continue
		}
		all.Go(func() {
			defer func() { <-g.strangers }()
			in, stop := context.WithTimeout(ctx, proveWithin)
			defer stop()
			conn, err := g.conf(in, raw)
			if err != nil {
				raw.Close()
				return
			}
			select {
			case g.friends <- struct{}{}:
			default:
				conn.Close()
				return
			}
			c := &friend{Conn: conn, g: g}
			select {
			case g.proved <- c:
			case <-in.Done():
				c.Close()
			}
		})
	}
}

// Accept implements net.Listener.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case c := <-g.proved:
		return c, nil
	case <-g.ended:
		return nil, g.err
	}
}

// Close implements net.Listener.
func (g *gate) Close() error {
	g.closing.Store(true)
	err := g.Listener.Close()
	<-g.ended
	return err
}

// friend is a proved connection. It hides its type from net/http, which would do TLS's
// protocols its own way.
type friend struct {
	net.Conn
	g    *gate
	once sync.Once
}

func (f *friend) Close() error {
	f.once.Do(func() { <-f.g.friends })
	return f.Conn.Close()
}
