package remote_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/http"
	"testing"

	"cairn/id"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/link"
	"cairn/node/nodetest"
	"cairn/node/remote"
	"cairn/node/server"
	"cairn/node/vfs"
)

// far is a node behind a link, all of it in this process.
type far struct {
	t       testing.TB
	dir     string
	cluster id.Cluster
	gateway link.Key
	own     link.Key
	secure  bool
	wrap    func(net.Listener) net.Listener
	change  func(*remote.Config)

	disk *disk.Node
	fs   interface{ Close() error }
	node *remote.Node
	stop func()
	addr string
}

func newKey(t testing.TB) link.Key {
	t.Helper()
	k, err := link.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newFar(t testing.TB, secure bool) *far {
	t.Helper()
	f := &far{t: t, dir: t.TempDir(), cluster: id.Cluster{1}, secure: secure, gateway: newKey(t), own: newKey(t)}
	fs, err := vfs.OS(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Format(fs, disk.Config{Cluster: f.cluster}); err != nil {
		t.Fatal(err)
	}
	if err := fs.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.close() })
	return f
}

func (f *far) open() *remote.Node {
	f.t.Helper()
	fs, err := vfs.OS(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	f.fs = fs
	if f.disk, err = disk.Open(fs, disk.Config{Cluster: f.cluster}); err != nil {
		f.t.Fatal(err)
	}
	f.serve(f.disk)
	f.connect()
	return f.node
}

// serve has a process answer for st.
func (f *far) serve(st node.Store) {
	f.t.Helper()
	s, err := server.New(server.Config{Cluster: f.cluster})
	if err != nil {
		f.t.Fatal(err)
	}
	s.Set(st.ID(), st)
	addr := f.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.addr = l.Addr().String()
	if f.wrap != nil {
		l = f.wrap(l)
	}
	if f.secure {
		conf, err := f.own.ServerConfig(f.gateway.Public())
		if err != nil {
			f.t.Fatal(err)
		}
		l = server.Listen(l, server.Proved(conf), 64, 32)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	f.stop = func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, http.ErrServerClosed) {
			f.t.Errorf("serve: %v", err)
		}
	}
}

func (f *far) connect() {
	f.t.Helper()
	cfg := remote.Config{Node: f.disk.ID(), Address: f.addr}
	if f.secure {
		var err error
		if cfg.TLS, err = f.gateway.ClientConfig(f.own.Public()); err != nil {
			f.t.Fatal(err)
		}
	}
	if f.change != nil {
		f.change(&cfg)
	}
	n, err := remote.Open(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.node = n
}

func (f *far) close() {
	if f.node != nil {
		if err := f.node.Close(); err != nil && !errors.Is(err, node.ErrClosed) {
			f.t.Error(err)
		}
		f.stop()
		if err := errors.Join(f.disk.Close(), f.fs.Close()); err != nil {
			f.t.Error(err)
		}
		f.node = nil
	}
}

func (f *far) harness() nodetest.Harness {
	return nodetest.Harness{Store: f.open(), Reopen: func(t *testing.T) node.Store {
		f.close()
		return f.open()
	}}
}

// TestRemote: a node behind the link is a node, word for word.
func TestRemote(t *testing.T) {
	for name, secure := range map[string]bool{"TLS": true, "trusted": false} {
		t.Run(name, func(t *testing.T) {
			nodetest.Run(t, func(t *testing.T) nodetest.Harness { return newFar(t, secure).harness() })
		})
	}
}
