package remote_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/node/link"
	"cairn/node/nodetest"
	"cairn/node/remote"
	"cairn/node/server"
	"cairn/pack"
)

// unavailable fails unless err is "could not ask" and nothing more certain.
func unavailable(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, node.ErrUnavailable) || errors.Is(err, node.ErrNotFound) || errors.Is(err, node.ErrDamaged) || errors.Is(err, node.ErrMissing) {
		t.Errorf("%s: %v, want unavailable", what, err)
	}
}

// TestStrangers: whoever has another key than the one that was pinned is heard by
// neither end, nor who speaks plainly, an older TLS, or another protocol.
func TestStrangers(t *testing.T) {
	f := newFar(t, true)
	n := f.open()
	s := nodetest.Shard{Kind: pack.Data, Pack: 1, Len: 100}
	if _, err := nodetest.Put(t.Context(), n, 1, s); err != nil {
		t.Fatal(err)
	}
	good := func() *tls.Config {
		c, err := f.gateway.ClientConfig(f.own.Public())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for name, conf := range map[string]func() *tls.Config{
		"a stranger's key": func() *tls.Config {
			c, _ := newKey(t).ClientConfig(f.own.Public())
			return c
		},
		"another node": func() *tls.Config {
			c, _ := f.gateway.ClientConfig(newKey(t).Public())
			return c
		},
		"the node's own key": func() *tls.Config {
			c, _ := f.own.ClientConfig(f.own.Public())
			return c
		},
		"no certificate": func() *tls.Config { c := good(); c.Certificates = nil; return c },
		"TLS 1.2": func() *tls.Config {
			c := good()
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return c
		},
		"another protocol": func() *tls.Config {
			c := good()
			c.NextProtos = []string{"http/1.1"}
			return c
		},
		"no protocol": func() *tls.Config { c := good(); c.NextProtos = nil; return c },
		"plain":       func() *tls.Config { return nil },
	} {
		other, err := remote.Open(remote.Config{Node: n.ID(), Address: f.addr, TLS: conf(), Quick: time.Second, Slow: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		unavailable(t, name, other.Read(t.Context(), s.Key(), 0, make([]byte, 10)))
		_, err = other.Promised(t.Context())
		unavailable(t, name, err)
		unavailable(t, name, other.Promise(t.Context(), nodetest.By(9)))
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}
	if p, err := n.Promised(t.Context()); err != nil || p != nodetest.By(1) {
		t.Errorf("promised: %v, %v", p, err)
	}
}

// TestStrangersLeaveRoom: connections that prove nothing hold up nobody.
func TestStrangersLeaveRoom(t *testing.T) {
	f := newFar(t, true)
	n := f.open()
	for range 100 {
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	// 32 of them are waited for, 5 seconds; the others are gone at once.
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		_, err := n.Promised(t.Context())
		if err == nil {
			return
		}
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("beside strangers: %v", err)
		}
	}
}

// hostile is a process that answers as it likes.
func hostile(t *testing.T, h http.HandlerFunc) *remote.Node {
	t.Helper()
	srv := httptest.NewServer(h)
	n, err := remote.Open(remote.Config{Node: id.Node{7}, Address: strings.TrimPrefix(srv.URL, "http://"),
		Quick: 700 * time.Millisecond, Slow: 700 * time.Millisecond, Pace: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		srv.CloseClientConnections()
		srv.Close()
	})
	return n
}

// mine says that an answer is of the node that was asked.
func mine(w http.ResponseWriter) {
	w.Header().Set(link.NodeHeader, id.Node{7}.String()+" abc")
}

// calls reads the calls of a request.
func calls(r *http.Request) (out []link.Call) {
	b, _ := io.ReadAll(r.Body)
	raw, _ := link.Split(b)
	for _, x := range raw {
		c, _ := link.ParseCall(x)
		out = append(out, c)
	}
	return out
}

// TestHostileNode: whatever a process answers, it is no wrong byte, no certainty, and little
// memory (H46).
func TestHostileNode(t *testing.T) {
	other := nodetest.Shard{Kind: pack.Data, Pack: 77, Len: 100}
	key := nodetest.Shard{Kind: pack.Data, Pack: 5}.Key()
	info := link.Info{Pack: key.Pack, Index: key.Index, Instance: 1, Size: 5}
	header := func(s nodetest.Shard) []byte { h := s.Header(); return h.Append(nil) }
	answer := func(r link.Result) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) {
			mine(w)
			for _, c := range calls(req) {
				_, _ = w.Write(link.AppendAnswer(nil, &link.Answer{No: c.No, Result: r}))
			}
		}
	}
	raw := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) { calls(req); mine(w); _, _ = w.Write(b) }
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) {
			calls(req)
			mine(w)
			w.Header().Set("Location", "/hello")
			w.WriteHeader(code)
		}
	}
	endless := func(w http.ResponseWriter, req *http.Request) {
		calls(req)
		mine(w)
		for junk := make([]byte, 1<<20); ; {
			if _, err := w.Write(junk); err != nil {
				return
			}
		}
	}
	long := bytes.Repeat([]byte{0xff}, 64)
	for name, h := range map[string]http.HandlerFunc{
		"404": status(404), "302": status(302), "500": status(500), "401": status(401), "204": status(204), "nothing": raw(nil), "junk": raw(long),
		"endless": endless, "an answer to nobody": raw(link.AppendAnswer(nil, &link.Answer{No: 99})),
		"another node": func(w http.ResponseWriter, req *http.Request) {
			calls(req)
			w.Header().Set(link.NodeHeader, id.Node{8}.String()+" abc")
			_, _ = w.Write(link.AppendAnswer(nil, &link.Answer{No: 1}))
		},
		"no node": func(w http.ResponseWriter, req *http.Request) {
			calls(req)
			_, _ = w.Write(link.AppendAnswer(nil, &link.Answer{No: 1}))
		},
		"hangs": func(w http.ResponseWriter, req *http.Request) { calls(req); mine(w); <-req.Context().Done() },
		"trickles": func(w http.ResponseWriter, req *http.Request) {
			calls(req)
			mine(w)
			w.Header().Set("Content-Length", "200000")
			for req.Context().Err() == nil {
				_, _ = w.Write([]byte{0})
				_ = http.NewResponseController(w).Flush()
				time.Sleep(20 * time.Millisecond)
			}
		},
		"gzip": func(w http.ResponseWriter, req *http.Request) {
			calls(req)
			mine(w)
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff})
		},
		"headers without end": func(w http.ResponseWriter, req *http.Request) {
			calls(req)
			w.Header().Set("X", strings.Repeat("x", 1<<20))
		},
		"empty results": answer(link.Result{}), "another shard": answer(link.Result{Info: new(link.OfInfo(node.Info{Key: other.Key(), Instance: 1})), Header: header(other)}),
		"half a header":           answer(link.Result{Info: &info, Header: long}),
		"too many bytes":          answer(link.Result{Body: make([]byte, 3000), Infos: []link.Info{info, info, info}, Entries: []link.Entry{{Info: info, Header: header(other)}}}),
		"usage of nothing":        answer(link.Result{Usage: &link.Usage{Total: -5}, Infos: []link.Info{{Size: -5}}}),
		"an old number, repeated": raw(append(link.AppendAnswer(nil, &link.Answer{No: 1, Code: 200}), link.AppendAnswer(nil, &link.Answer{No: 1})...)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := hostile(t, h)
			ctx := t.Context()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			unavailable(t, "read", n.Read(ctx, key, 0, make([]byte, 100)))
			unavailable(t, "read of much", n.Read(ctx, key, 0, make([]byte, 200_000)))
			_, _, err := n.Stat(ctx, key)
			unavailable(t, "stat", err)
			if _, err = nodetest.Put(ctx, n, 1, nodetest.Shard{Kind: pack.Data, Pack: 5, Len: 100}); err == nil || !errors.Is(err, node.ErrUnavailable) {
				t.Errorf("put: %v", err)
			}
			if _, err = nodetest.Put(ctx, n, 1, nodetest.Shard{Kind: pack.Data, Pack: 5, Len: 300_000}); err == nil || !errors.Is(err, node.ErrUnavailable) {
				t.Errorf("long put: %v", err)
			}
			_, err = n.Usage(ctx)
			unavailable(t, "usage", err)
			if l, err := n.List(ctx, node.Key{}, 2); err == nil && len(l) > 0 {
				t.Errorf("list: %v", l)
			}
			if l, err := n.ListLog(ctx, 0, nil, 2); err == nil && len(l) > 0 {
				t.Errorf("log: %v", l)
			}
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
				t.Errorf("%d MiB more are in use", grown>>20)
			}
		})
	}
}

// gated is a node of which some operations wait until they are let go.
type gated struct {
	node.Store
	deletes chan struct{} // a delete takes one
	stats   chan struct{}
	hold    node.Key // whose stat waits
	begun   chan struct{}
}

func (g *gated) Delete(ctx context.Context, by node.Authority, k node.Key, i id.Instance) error {
	if g.deletes != nil {
		g.begun <- struct{}{}
		<-g.deletes
	}
	return g.Store.Delete(ctx, by, k, i)
}

func (g *gated) Stat(ctx context.Context, k node.Key) (node.Info, pack.Header, error) {
	if g.stats != nil && k == g.hold {
		select {
		case <-g.stats:
		case <-ctx.Done():
			return node.Info{}, pack.Header{}, ctx.Err()
		}
	}
	return g.Store.Stat(ctx, k)
}

// behind serves a node through what changes it.
func behind(t *testing.T, f *far, st node.Store) {
	t.Helper()
	f.node.Close()
	f.stop()
	f.serve(st)
	f.connect()
}

// TestGivenUpIsOver: behind a delete that was given up while a disk hangs, nothing changes
// on the node until the delete is over: a shard that is put again would be what it deletes
// (H45).
func TestGivenUpIsOver(t *testing.T) {
	f := newFar(t, true)
	f.change = func(c *remote.Config) { c.Quick, c.Slow = 300*time.Millisecond, 300*time.Millisecond }
	f.open()
	g := &gated{Store: f.disk, deletes: make(chan struct{}), begun: make(chan struct{}, 10)}
	behind(t, f, g)
	ctx := t.Context()
	s := nodetest.Shard{Kind: pack.Data, Pack: 1, Len: 1000}
	inst, err := nodetest.Put(ctx, f.node, 1, s)
	if err != nil {
		t.Fatal(err)
	}
	unavailable(t, "a delete that hangs", f.node.Delete(ctx, nodetest.By(1), s.Key(), inst))
	<-g.begun
	_, err = nodetest.Put(ctx, f.node, 1, s)
	unavailable(t, "a put before the delete is over", err)
	if err := f.node.Read(ctx, s.Key(), 0, make([]byte, 10)); err != nil {
		t.Errorf("a read meanwhile: %v", err)
	}
	close(g.deletes)
	var again id.Instance
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if again, err = nodetest.Put(ctx, f.node, 1, s); err == nil {
			break
		}
		unavailable(t, "a put", err)
		if time.Now().After(deadline) {
			t.Fatalf("the node never takes a put again: %v", err)
		}
	}
	if again == inst {
		t.Errorf("the put behind the delete got the deleted instance %d", again)
	}
	time.Sleep(100 * time.Millisecond)
	if err := f.node.Verify(ctx, s.Key()); err != nil {
		t.Errorf("what was put behind the delete: %v", err)
	}
}

// TestLateRequestIsRefused: a delete that the network held back until its asker had given
// it up is refused when it arrives.
func TestLateRequestIsRefused(t *testing.T) {
	f := newFar(t, false)
	var hold atomic.Bool
	late := make(chan struct{})
	f.change = func(c *remote.Config) {
		c.Quick, c.Slow = 300*time.Millisecond, 300*time.Millisecond
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			return &lateConn{Conn: conn, hold: &hold, late: late}, err
		}
	}
	n := f.open()
	ctx := t.Context()
	s := nodetest.Shard{Kind: pack.Data, Pack: 1, Len: 1000}
	inst, err := nodetest.Put(ctx, n, 1, s)
	if err != nil {
		t.Fatal(err)
	}
	hold.Store(true)
	unavailable(t, "a delete that is held back", n.Delete(ctx, nodetest.By(1), s.Key(), inst))
	hold.Store(false)
	if again, err := nodetest.Put(ctx, n, 1, s); err != nil || again != inst {
		t.Fatalf("put: %v, %v", again, err)
	}
	close(late) // now the delete arrives
	time.Sleep(300 * time.Millisecond)
	if err := n.Verify(ctx, s.Key()); err != nil {
		t.Errorf("a delete that came late was carried out: %v", err)
	}
}

// lateConn delivers what was written while hold was set only when late is closed, and is
// not closed before.
type lateConn struct {
	net.Conn
	hold *atomic.Bool
	late chan struct{}
	mu   sync.Mutex
	kept bool
}

func (c *lateConn) Write(b []byte) (int, error) {
	if c.hold.Load() {
		c.mu.Lock()
		c.kept = true
		c.mu.Unlock()
		b = bytes.Clone(b)
		go func() {
			<-c.late
			_, _ = c.Conn.Write(b)
		}()
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *lateConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept {
		return nil // the network still has it
	}
	return c.Conn.Close()
}

// TestProcessStartsAnew: a node whose process was replaced goes on where it was.
func TestProcessStartsAnew(t *testing.T) {
	f := newFar(t, true)
	n := f.open()
	ctx := t.Context()
	for i := range 5 {
		if i > 0 {
			f.stop()
			f.serve(f.disk)
		}
		for _, size := range []int{100, 300_000} {
			s := nodetest.Shard{Kind: pack.Data, Pack: uint64(10*i + size%7), Len: size}
			var err error
			for range 20 { // an idle connection may be dead
				if _, err = nodetest.Put(ctx, n, 1, s); err == nil {
					break
				}
				unavailable(t, "put", err)
				time.Sleep(20 * time.Millisecond)
			}
			if err != nil {
				t.Fatalf("start %d: put: %v", i, err)
			}
			if err := n.Verify(ctx, s.Key()); err != nil {
				t.Errorf("start %d: %v", i, err)
			}
		}
	}
}

// TestTwoOfOneIdentity: two processes that answer in turn are told, and not believed.
func TestTwoOfOneIdentity(t *testing.T) {
	var turn atomic.Int64
	n := hostile(t, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set(link.NodeHeader, fmt.Sprintf("%v %x", id.Node{7}, turn.Add(1)%2+1))
		for _, c := range calls(req) {
			_, _ = w.Write(link.AppendAnswer(nil, &link.Answer{No: c.No}))
		}
	})
	var err error
	for range 3 {
		if _, err = n.Promised(t.Context()); err != nil {
			break
		}
	}
	if unavailable(t, "a copy of the node", err); err == nil || !strings.Contains(err.Error(), "copy") {
		t.Errorf("%v; want it to say what is wrong", err)
	}
}

// TestLeftAlone: a node that does not answer is asked less and less, by nobody's request,
// and found again when it does.
func TestLeftAlone(t *testing.T) {
	f := newFar(t, true)
	f.change = func(c *remote.Config) { c.Quick, c.Slow = 200*time.Millisecond, 200*time.Millisecond }
	n := f.open()
	ctx := t.Context()
	if _, err := n.Promised(ctx); err != nil {
		t.Fatal(err)
	}
	f.stop()
	for range 5 {
		_, err := n.Promised(ctx)
		unavailable(t, "a dead node", err)
	}
	begin := time.Now()
	for range 1000 {
		_, err := n.Promised(ctx)
		unavailable(t, "a dead node", err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("1000 questions to a node that is left alone took %v", took)
	}
	f.serve(f.disk)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := n.Promised(ctx); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("it is never found again: %v", err)
		}
	}
	// What callers give up is not the node's fault.
	for range 50 {
		gone, cancel := context.WithCancel(ctx)
		go cancel()
		_, _ = n.Promised(gone)
		cancel()
	}
	if _, err := n.Promised(ctx); err != nil {
		t.Errorf("behind callers that gave up: %v", err)
	}
}

// TestCallsTravelTogether: many calls take few requests, and one that hangs holds up none
// of the others.
func TestCallsTravelTogether(t *testing.T) {
	f := newFar(t, false)
	f.open()
	g := &gated{Store: f.disk, stats: make(chan struct{}), hold: nodetest.Shard{Pack: 999}.Key()}
	requests := atomic.Int64{}
	s, err := server.New(server.Config{Cluster: f.cluster})
	if err != nil {
		t.Fatal(err)
	}
	s.Set(g.ID(), g)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		s.ServeHTTP(w, r)
	}))
	defer srv.Close()
	n, err := remote.Open(remote.Config{Node: g.ID(), Address: strings.TrimPrefix(srv.URL, "http://"), Quick: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	ctx := t.Context()
	shard := nodetest.Shard{Kind: pack.Data, Pack: 1, Len: 100}
	if _, err := nodetest.Put(ctx, n, 1, shard); err != nil {
		t.Fatal(err)
	}
	var hung, quick sync.WaitGroup
	patience, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	for range 10 { // more than there are requests
		hung.Go(func() {
			if _, _, err := n.Stat(patience, g.hold); err == nil {
				t.Error("a stat that hangs is answered")
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	requests.Store(0)
	begin := time.Now()
	const many = 2000
	for range many / 20 {
		quick.Go(func() {
			for range 20 {
				if _, _, err := n.Stat(ctx, shard.Key()); err != nil {
					t.Errorf("stat: %v", err)
				}
			}
		})
	}
	quick.Wait()
	if took := time.Since(begin); took > 2500*time.Millisecond {
		t.Errorf("%d calls beside ten that hang took %v", many, took)
	}
	if r := requests.Load(); r > many/2 {
		t.Errorf("%d calls took %d requests", many, r)
	}
	hung.Wait()
}

// TestBusyNode: a node without memory for a request says so before it reads it, and has
// begun nothing.
func TestBusyNode(t *testing.T) {
	f := newFar(t, false)
	f.open()
	s, err := server.New(server.Config{Cluster: f.cluster, Requests: 1})
	if err != nil {
		t.Fatal(err)
	}
	g := &gated{Store: f.disk, deletes: make(chan struct{}), begun: make(chan struct{}, 1)}
	s.Set(g.ID(), g)
	srv := httptest.NewServer(s)
	defer srv.Close()
	n, err := remote.Open(remote.Config{Node: g.ID(), Address: strings.TrimPrefix(srv.URL, "http://")})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	ctx := t.Context()
	shard := nodetest.Shard{Kind: pack.Data, Pack: 1, Len: 300_000}
	inst, err := nodetest.Put(ctx, n, 1, shard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- n.Delete(ctx, nodetest.By(1), nodetest.Shard{Pack: 2}.Key(), inst) }()
	<-g.begun
	_, err = nodetest.Put(ctx, n, 1, nodetest.Shard{Kind: pack.Data, Pack: 3, Len: 300_000})
	unavailable(t, "a put to a busy node", err)
	if !errors.Is(err, link.ErrNotBegun) {
		t.Errorf("a put to a busy node: %v; want that it has not begun", err)
	}
	close(g.deletes)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := nodetest.Put(ctx, n, 1, nodetest.Shard{Kind: pack.Data, Pack: 3, Len: 300_000}); err != nil {
		t.Errorf("behind it: %v", err)
	}
}
