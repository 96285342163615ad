// Package remote is a node on another host: it implements the contract of package node
// over the link that docs/formats/node-link.md describes.
//
// A [Node] opens connections when it needs them, and is there whether or not its host
// is: what cannot be asked is [node.ErrUnavailable]. It believes answers no further than that
// page says; digests and seals are checked above it. Its methods may be called at the
// same time. Memory: the calls that wait, at most 16 MiB of them, and their answers, at most 8 MiB
// for each of sixteen requests; shards are written from and read into the caller's buffers.
package remote

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"

	"cairn/id"
	"cairn/node"
	"cairn/node/link"
	"cairn/pack"
)

// Config describes a node on another host. A zero optional field means its default.
type Config struct {
	Node    id.Node     // required: whom the answers must be of
	Address string      // required: host:port
	TLS     *tls.Config // [link.Key.ClientConfig]; nil for a link that proves nothing
	Log     *slog.Logger
	// Quick is how long an answer to what is quick may take, 10 s; Slow how long one to
	// what is not, or a shard, 60 s. A caller's deadline counts if it is earlier.
	Quick, Slow time.Duration
	// Pace is how long the next 64 KiB of a shard may take; 5 s.
	Pace time.Duration
	// Dial opens connections; default: TCP with keep-alive.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Node is a node on another host.
type Node struct {
	cfg     Config
	base    string
	http    *http.Transport
	quick   *lane // calls that are answered soon
	slow    chan struct{}
	shards  chan struct{}
	logs    chan struct{}
	breaker circuitbreaker.CircuitBreaker[any]
	ctx     context.Context // over behind Close
	cancel  context.CancelCauseFunc
	all     sync.WaitGroup // what runs by itself
	settle  settling

	mu     sync.Mutex
	closed bool
	run    string    // of the process that answered last
	runs   []string  // of those before it
	copied time.Time // until then nobody is asked: two processes have answered
}

var _ node.Store = (*Node)(nil)

// Open describes the node; it asks it nothing. The caller closes it.
func Open(cfg Config) (*Node, error) {
	switch _, _, err := net.SplitHostPort(cfg.Address); {
	case cfg.Node.IsZero():
		return nil, errors.New("remote node: Config.Node is required")
	case err != nil:
		return nil, fmt.Errorf("remote node %v: Config.Address: %w", cfg.Node, err)
	}
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.Quick = cmp.Or(cfg.Quick, 10*time.Second)
	cfg.Slow = cmp.Or(cfg.Slow, time.Minute)
	cfg.Pace = cmp.Or(cfg.Pace, 5*time.Second)
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: dialWithin, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}}).DialContext
	}
	n := &Node{cfg: cfg, slow: make(chan struct{}, 4), shards: make(chan struct{}, 8), logs: make(chan struct{}, 4)}
	n.ctx, n.cancel = context.WithCancelCause(context.Background())
	n.base = "http://" + cfg.Address // TLS is dial's
	n.http = &http.Transport{
		DialContext: n.dial, Proxy: nil, DisableCompression: true, MaxIdleConnsPerHost: 40, MaxConnsPerHost: 40, IdleConnTimeout: time.Minute,
		ExpectContinueTimeout: 2 * time.Second, MaxResponseHeaderBytes: link.MaxHeader, WriteBufferSize: 256 << 10, ReadBufferSize: 64 << 10,
	}
	n.quick = &lane{n: n}
	n.settle.gen = uint64(time.Now().UnixNano())
	n.breaker = circuitbreaker.NewBuilder[any]().WithFailureThreshold(5).WithDelay(24 * time.Hour). // the probe closes it
													OnOpen(func(circuitbreaker.StateChangedEvent) { n.watch() }).Build()
	return n, nil
}

const dialWithin = 5 * time.Second

// dial opens a connection and has both ends prove themselves.
func (n *Node) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	raw, err := n.cfg.Dial(ctx, network, addr)
	if err != nil || n.cfg.TLS == nil {
		return raw, err
	}
	c := tls.Client(raw, n.cfg.TLS)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// ID implements node.Store.
func (n *Node) ID() id.Node { return n.cfg.Node }

// Close gives up what runs and closes the connections. The node at the other end stays
// as it is.
func (n *Node) Close() error {
	n.mu.Lock()
	was := n.closed
	n.closed = true
	n.mu.Unlock()
	if was {
		return n.fail("close", node.Key{}, node.ErrClosed)
	}
	n.quick.mu.Lock() // whoever looks at n.ctx there begins what is waited for here, or nothing
	n.cancel(node.ErrClosed)
	n.quick.mu.Unlock()
	n.all.Wait()
	n.http.CloseIdleConnections()
	return nil
}

// enter says why nothing can be asked.
func (n *Node) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return node.ErrClosed
	}
	if time.Now().Before(n.copied) {
		return fmt.Errorf("%w: %w", node.ErrUnavailable, errCopied)
	}
	if n.breaker.IsOpen() {
		return fmt.Errorf("%w: it has not answered for a while", node.ErrUnavailable)
	}
	return nil
}

func (n *Node) fail(op string, k node.Key, err error) error {
	if err == nil {
		return nil
	}
	return &node.Error{Op: op, Node: n.cfg.Node, Key: k, Err: err}
}

// linkError is a failure of the link itself, not what a node said.
type linkError struct {
	err   error
	begun bool // the node may have begun what it was asked
}

func (e *linkError) Error() string { return e.err.Error() }

func (e *linkError) Unwrap() []error {
	if !e.begun {
		return []error{link.ErrNotBegun, e.err}
	}
	return []error{node.ErrUnavailable, e.err}
}

// judge is what a caller is told, and what the breaker learns, of how a request ended.
func (n *Node) judge(ctx context.Context, err error) error {
	le, ok := errors.AsType[*linkError](err)
	switch {
	case err == nil, !ok:
		n.breaker.RecordSuccess()
		return err
	case n.ctx.Err() != nil:
		return node.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err() // the caller's; the link is not to blame
	}
	n.breaker.RecordFailure()
	if errors.Is(le.err, context.DeadlineExceeded) || errors.Is(le.err, context.Canceled) {
		le = &linkError{errors.New("no answer in time"), le.begun} // the link's own deadline is not the caller's
	}
	return le
}

// watch asks a node that does not answer again and again, until it does.
func (n *Node) watch() {
	n.cfg.Log.Warn("a node does not answer and is left alone for a while", "node", n.cfg.Node, "address", n.cfg.Address)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	n.all.Go(func() {
		for wait := time.Second; ; wait = min(2*wait, 15*time.Second) {
			select {
			case <-time.After(wait):
			case <-n.ctx.Done():
				return
			}
			ctx, cancel := context.WithTimeout(n.ctx, 3*time.Second)
			_, err := n.alone(ctx, &link.Call{Op: link.OpPromised})
			cancel()
			if le, failed := errors.AsType[*linkError](err); !failed {
				n.breaker.Close()
				n.cfg.Log.Info("a node answers again", "node", n.cfg.Node)
				return
			} else if n.ctx.Err() == nil {
				n.cfg.Log.Debug("a node does not answer", "node", n.cfg.Node, "err", le.err)
			}
		}
	})
}

// errCopied: nobody can say which of the two holds what was stored.
var errCopied = errors.New("two processes answer in turn under the identity of one node: one of them is a copy, stop it")

// copiedFor is how long a node of which there are two is not asked.
const copiedFor = 30 * time.Second

// heard checks whose answer it is.
func (n *Node) heard(h http.Header) error {
	who, run, _ := strings.Cut(h.Get(link.NodeHeader), " ")
	if who != n.cfg.Node.String() || run == "" || len(run) > 16 {
		return fmt.Errorf("an answer of %.40q where node %v was asked", who, n.cfg.Node)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case run == n.run:
		return nil
	case slices.Contains(n.runs, run):
		if n.copied.Before(time.Now()) {
			n.cfg.Log.Error("a node is not asked any more", "node", n.cfg.Node, "address", n.cfg.Address, "err", errCopied)
		}
		n.copied = time.Now().Add(copiedFor)
		return errCopied
	}
	if n.run != "" {
		n.runs = append(n.runs[max(0, len(n.runs)-7):], n.run)
	}
	n.run = run
	return nil
}

// quickly bounds what is quick, slowly what is not.
func (n *Node) quickly(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, n.cfg.Quick)
}
func (n *Node) slowly(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, n.cfg.Slow)
}

// ask has a call answered that changes nothing; again, if the link fails.
func (n *Node) ask(ctx context.Context, c link.Call) (link.Result, error) {
	if err := n.enter(ctx); err != nil {
		return link.Result{}, err
	}
	var out link.Result
	err := repeat(ctx, harmless, func() (err error) {
		out, err = n.once(ctx, c)
		return err
	})
	return out, err
}

// harmless reports whether what changes nothing is asked again.
func harmless(err error) bool {
	_, failed := errors.AsType[*linkError](err)
	return (failed || errors.Is(err, link.ErrNotBegun)) && !errors.Is(err, errCopied)
}

// once has a call answered.
func (n *Node) once(ctx context.Context, c link.Call) (out link.Result, err error) {
	if c.Op.Slow() {
		in, cancel := n.slowly(ctx)
		defer cancel()
		if err := take(in, n.slow); err != nil {
			return out, n.judge(ctx, &linkError{err: err})
		}
		defer func() { <-n.slow }()
		out, err = n.alone(in, &c)
	} else {
		in, cancel := n.quickly(ctx)
		defer cancel()
		out, err = n.quick.ask(in, &c)
	}
	return out, n.judge(ctx, err)
}

func take(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// change has a call carried out that changes something: under the generation in force, and
// again only if it has not begun.
func (n *Node) change(ctx context.Context, by node.Authority, send func(gen uint64) error) error {
	if err := n.enter(ctx); err != nil {
		return err
	}
	if by.Epoch == 0 || by.Writer.IsZero() {
		return fmt.Errorf("%w: no authority", node.ErrFenced) // a node obeys nobody in particular only in process
	}
	return repeat(ctx, func(err error) bool { return errors.Is(err, link.ErrNotBegun) }, func() error {
		gen, err := n.settled(ctx, by)
		if err != nil {
			return err
		}
		err = send(gen)
		switch le, failed := errors.AsType[*linkError](err); {
		case failed && le.begun, err != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)), errors.Is(err, node.ErrClosed):
			n.settle.giveUp(gen)
		case errors.Is(err, link.ErrNotBegun) && !failed:
			n.settle.unsettle(gen) // the node has started anew, or knows of a newer one
		}
		return err
	})
}

// do is change for calls.
func (n *Node) do(ctx context.Context, by node.Authority, c link.Call) (out link.Result, err error) {
	c.Epoch, c.Writer = by.Epoch, by.Writer
	err = n.change(ctx, by, func(gen uint64) (err error) {
		c.Generation = gen
		out, err = n.once(ctx, c)
		return err
	})
	return out, err
}

// settling is which generation of calls that change something is in force.
type settling struct {
	mu      sync.Mutex
	gen     uint64
	by      node.Authority // whose it is; another's is settled anew
	ok      bool           // the node has said so
	running chan struct{}  // closed when the settle that runs is over
}

// giveUp says that a call of a generation has an outcome that nobody knows.
func (s *settling) giveUp(gen uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if gen == s.gen {
		s.gen, s.ok = max(s.gen+1, uint64(time.Now().UnixNano())), false
	}
}

// unsettle says that the node does not know of a generation.
func (s *settling) unsettle(gen uint64) { s.giveUp(gen) }

// settled returns the generation in force, after the node has said that nothing older
// runs or will.
func (n *Node) settled(ctx context.Context, by node.Authority) (uint64, error) {
	s := &n.settle
	for {
		s.mu.Lock()
		if s.ok && s.by == by {
			defer s.mu.Unlock()
			return s.gen, nil
		}
		if wait := s.running; wait != nil {
			s.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		ended := make(chan struct{})
		s.running = ended
		if s.by != by {
			s.by, s.ok = by, false
		}
		gen := s.gen
		s.mu.Unlock()

		_, err := n.once(ctx, link.Call{Op: link.OpSettle, Generation: gen, Epoch: by.Epoch, Writer: by.Writer})

		s.mu.Lock()
		s.running = nil
		if err == nil && s.gen == gen && s.by == by {
			s.ok = true
		} else if errors.Is(err, link.ErrNotBegun) {
			s.gen = max(s.gen+1, uint64(time.Now().UnixNano()))
		}
		s.mu.Unlock()
		close(ended)
		if err != nil {
			return 0, err
		}
	}
}

// Put implements node.Store.
func (n *Node) Put(ctx context.Context, by node.Authority, why node.Purpose, sh node.Shard) (id.Instance, error) {
	size := len(sh.Head) + len(sh.Body)
	if err := n.enter(ctx); err != nil {
		return 0, n.fail("put", node.Key{}, err)
	}
	if by.Epoch == 0 || by.Writer.IsZero() {
		return 0, n.fail("put", node.Key{}, fmt.Errorf("%w: no authority", node.ErrFenced))
	}
	h, err := headerOf(sh)
	if err != nil {
		return 0, n.fail("put", node.Key{}, fmt.Errorf("%w: %w", node.ErrDamaged, err))
	}
	k := node.Key{Pack: h.Pack, Index: h.Index}
	if size > pack.MaxShardSize || size != h.ShardLen() {
		return 0, n.fail("put", k, fmt.Errorf("%w: %d bytes, the header says %d", node.ErrDamaged, size, h.ShardLen()))
	}
	var out id.Instance
	if size <= link.SmallBody {
		body := slices.Concat(sh.Head, sh.Body)
		var r link.Result
		r, err = n.do(ctx, by, link.Call{Op: link.OpPut, Why: uint8(why), Pack: k.Pack, Index: k.Index, Body: body})
		out = r.Instance
	} else {
		err = n.change(ctx, by, func(gen uint64) (err error) {
			out, err = n.putLong(ctx, by, gen, why, k, sh)
			return err
		})
	}
	if err == nil && out == 0 {
		err = fmt.Errorf("%w: it says that the shard is stored, and not which instance", node.ErrUnavailable)
	}
	return out, n.fail("put", k, err)
}

func headerOf(sh node.Shard) (pack.Header, error) {
	b := sh.Head
	if len(b) < pack.HeaderSize {
		b = slices.Concat(sh.Head, sh.Body[:min(len(sh.Body), pack.HeaderSize-len(b))])
	}
	return pack.ParseHeader(b)
}

// Read implements node.Store.
func (n *Node) Read(ctx context.Context, k node.Key, off int64, dst []byte) error {
	if len(dst) > link.SmallBody {
		if err := n.enter(ctx); err != nil {
			return n.fail("read", k, err)
		}
		if off < 0 || len(dst) > pack.MaxShardSize {
			return n.fail("read", k, fmt.Errorf("%w: %d bytes at %d", node.ErrDamaged, len(dst), off))
		}
		err := repeat(ctx, harmless, func() error {
			return n.readLong(ctx, k, off, dst)
		})
		return n.fail("read", k, err)
	}
	r, err := n.ask(ctx, link.Call{Op: link.OpRead, Pack: k.Pack, Index: k.Index, Off: off, Len: uint32(len(dst))})
	if err == nil && len(r.Body) != len(dst) {
		err = fmt.Errorf("%w: %d bytes where %d were asked for", node.ErrUnavailable, len(r.Body), len(dst))
	}
	if err == nil {
		copy(dst, r.Body)
	}
	return n.fail("read", k, err)
}

// Stat implements node.Store.
func (n *Node) Stat(ctx context.Context, k node.Key) (node.Info, pack.Header, error) {
	r, err := n.ask(ctx, link.Call{Op: link.OpStat, Pack: k.Pack, Index: k.Index})
	if err != nil {
		return node.Info{}, pack.Header{}, n.fail("stat", k, err)
	}
	h, err := link.HeaderOf(r.Header, k)
	if err == nil && (r.Info == nil || r.Info.Node().Key != k || r.Info.Instance == 0) {
		err = errors.New("it describes another shard")
	}
	if err != nil {
		return node.Info{}, pack.Header{}, n.fail("stat", k, fmt.Errorf("%w: %w", node.ErrUnavailable, err))
	}
	return r.Info.Node(), h, nil
}

// Verify implements node.Store.
func (n *Node) Verify(ctx context.Context, k node.Key) error {
	_, err := n.ask(ctx, link.Call{Op: link.OpVerify, Pack: k.Pack, Index: k.Index})
	return n.fail("verify", k, err)
}

// Delete implements node.Store.
func (n *Node) Delete(ctx context.Context, by node.Authority, k node.Key, i id.Instance) error {
	_, err := n.do(ctx, by, link.Call{Op: link.OpDelete, Pack: k.Pack, Index: k.Index, Instance: i})
	return n.fail("delete", k, err)
}

// Undelete implements node.Store.
func (n *Node) Undelete(ctx context.Context, by node.Authority, k node.Key, i id.Instance) error {
	_, err := n.do(ctx, by, link.Call{Op: link.OpUndelete, Pack: k.Pack, Index: k.Index, Instance: i})
	return n.fail("undelete", k, err)
}

// List implements node.Store.
func (n *Node) List(ctx context.Context, after node.Key, limit int) ([]node.Info, error) {
	if limit <= 0 {
		return nil, n.fail("list", node.Key{}, n.enter(ctx))
	}
	var out []node.Info
	for len(out) < limit {
		want := min(limit-len(out), link.MaxPage)
		r, err := n.ask(ctx, link.Call{Op: link.OpList, Pack: after.Pack, Index: after.Index, Len: uint32(want)})
		if err != nil {
			return nil, n.fail("list", node.Key{}, err)
		}
		if len(r.Infos) > want {
			return nil, n.fail("list", node.Key{}, fmt.Errorf("%w: %d entries where %d were asked for", node.ErrUnavailable, len(r.Infos), want))
		}
		for i := range r.Infos {
			info := r.Infos[i].Node()
			if compareKeys(info.Key, after) <= 0 && (after != (node.Key{}) || len(out) > 0) || info.Size < 0 {
				return nil, n.fail("list", node.Key{}, fmt.Errorf("%w: its list does not rise", node.ErrUnavailable))
			}
			out, after = append(out, info), info.Key
		}
		if len(r.Infos) < want {
			break
		}
	}
	return out, nil
}

func compareKeys(a, b node.Key) int {
	return cmp.Or(slices.Compare(a.Pack[:], b.Pack[:]), cmp.Compare(a.Index, b.Index))
}

// Promise implements node.Store.
func (n *Node) Promise(ctx context.Context, by node.Authority) error {
	_, err := n.do(ctx, by, link.Call{Op: link.OpPromise})
	return n.fail("promise", node.Key{}, err)
}

// Promised implements node.Store.
func (n *Node) Promised(ctx context.Context) (node.Authority, error) {
	r, err := n.ask(ctx, link.Call{Op: link.OpPromised})
	if err != nil {
		return node.Authority{}, n.fail("promised", node.Key{}, err)
	}
	return node.Authority{Epoch: r.Epoch, Writer: r.Writer}, nil
}

// ListLog implements node.Store.
func (n *Node) ListLog(ctx context.Context, from uint64, after *node.Found, limit int) ([]node.Found, error) {
	limit = min(limit, link.MaxLogPage) // a short page is no end here: an empty one is
	c := link.Call{Op: link.OpListLog, From: from, Len: uint32(max(limit, 0))}
	if after != nil {
		e := link.OfFound(after)
		c.After = &e
	}
	r, err := n.ask(ctx, c)
	if err != nil {
		return nil, n.fail("list log", node.Key{}, err)
	}
	out, err := entries(r.Entries, from, max(limit, 0))
	if err != nil {
		return nil, n.fail("list log", node.Key{}, fmt.Errorf("%w: %w", node.ErrUnavailable, err))
	}
	return out, nil
}

// entries checks a page of a node's log.
func entries(l []link.Entry, from uint64, limit int) (out []node.Found, err error) {
	if len(l) > limit+link.MaxDamaged {
		return nil, fmt.Errorf("%d entries where %d were asked for", len(l), limit)
	}
	last := uint64(0)
	for i := range l {
		f, err := l[i].Node()
		if err != nil {
			return nil, err
		}
		if f.Err == nil {
			if f.Header.Seq < max(from, last) {
				return nil, errors.New("its list of the log does not rise")
			}
			last = f.Header.Seq
		}
		out = append(out, f)
	}
	return out, nil
}

// WriteFile implements node.Store.
func (n *Node) WriteFile(ctx context.Context, by node.Authority, f node.File, b []byte) error {
	if err := n.checkFile(ctx, f); err != nil {
		return n.fail("write file", node.Key{}, err)
	}
	if len(b) > link.MaxFile {
		return n.fail("write file", node.Key{}, fmt.Errorf("a small file of %d bytes, at most %d", len(b), link.MaxFile))
	}
	_, err := n.do(ctx, by, link.Call{Op: link.OpWriteFile, File: string(f), Body: b})
	return n.fail("write file", node.Key{}, err)
}

// ReadFile implements node.Store.
func (n *Node) ReadFile(ctx context.Context, f node.File) ([]byte, error) {
	if err := n.checkFile(ctx, f); err != nil {
		return nil, n.fail("read file", node.Key{}, err)
	}
	r, err := n.ask(ctx, link.Call{Op: link.OpReadFile, File: string(f)})
	if err == nil && len(r.Body) > link.MaxFile {
		err = fmt.Errorf("%w: a small file of %d bytes", node.ErrUnavailable, len(r.Body))
	}
	if err != nil {
		return nil, n.fail("read file", node.Key{}, err)
	}
	return r.Body, nil
}

func (n *Node) checkFile(ctx context.Context, f node.File) error {
	if err := n.enter(ctx); err != nil {
		return err
	}
	if f != node.ClusterFile && f != node.KeyringFile {
		return fmt.Errorf("no small file is named %q", f)
	}
	return nil
}

// Usage implements node.Store.
func (n *Node) Usage(ctx context.Context) (node.Usage, error) {
	r, err := n.ask(ctx, link.Call{Op: link.OpUsage})
	if err == nil && r.Usage == nil {
		err = fmt.Errorf("%w: an empty answer", node.ErrUnavailable)
	}
	if err != nil {
		return node.Usage{}, n.fail("usage", node.Key{}, err)
	}
	u, err := r.Usage.Node()
	if err != nil {
		return node.Usage{}, n.fail("usage", node.Key{}, fmt.Errorf("%w: %w", node.ErrUnavailable, err))
	}
	return u, nil
}

// request makes the request for a path under the node's address.
func (n *Node) request(ctx context.Context, method, path string, body io.ReadCloser, size int64) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, n.base+path, nil)
	if err != nil {
		return nil, err
	}
	if body != nil {
		r.Body, r.ContentLength = body, size
	}
	if at, ok := ctx.Deadline(); ok {
		r.Header.Set(link.WithinHeader, strconv.FormatInt(max(time.Until(at).Milliseconds(), 1), 10))
	}
	r.Header.Set("User-Agent", "cairn")
	return r, nil
}

// over joins a context with the node's own end.
func (n *Node) over(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(n.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}
