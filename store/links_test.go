package store

import (
	"errors"
	"net"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"cairn/node"
	"cairn/node/link"
	"cairn/node/remote"
	"cairn/node/server"
)

// farAway puts a node behind a link of its own, over loopback and TLS.
type farAway struct {
	node.Store
	srv  *httptest.Server
	once sync.Once
}

// linked serves n to a gateway that is this process, and returns what that sees of it.
func linked(t testing.TB, n node.Store) node.Store {
	t.Helper()
	gateway, own := link.KeyFromSeed([32]byte{1}), link.KeyFromSeed([32]byte{2})
	s, err := server.New(server.Config{Cluster: [16]byte{1, 2, 3}})
	if err != nil {
		t.Fatal(err)
	}
	s.Set(n.ID(), n)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in, err := own.ServerConfig(gateway.Public())
	if err != nil {
		t.Fatal(err)
	}
	out, err := gateway.ClientConfig(own.Public())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(s)
	addr := l.Addr().String()
	srv.Listener.Close()
	srv.Listener = server.Listen(l, server.Proved(in), 64, 32)
	srv.Start()
	far, err := remote.Open(remote.Config{Node: n.ID(), Address: addr, TLS: out})
	if err != nil {
		t.Fatal(err)
	}
	f := &farAway{Store: far, srv: srv}
	t.Cleanup(f.gone)
	return f
}

// gone ends the link, as a host does that dies.
func (f *farAway) gone() {
	f.once.Do(func() {
		_ = f.Store.Close()
		f.srv.CloseClientConnections()
		f.srv.Close()
	})
}

// overLinks reports whether every test of this package is to have its nodes behind links.
func overLinks() bool { return os.Getenv("CAIRN_LINKS") != "" }

// TestStoreOverLinks: a store whose nodes are behind links loses two of them in the middle
// of writes, goes on, gets them back, and is whole again; its index is lost as well.
func TestStoreOverLinks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	far := map[string]*farAway{}
	r.wrap = func(name string, n node.Store) node.Store {
		f := linked(t, n).(*farAway)
		far[name] = f
		return f
	}
	r.close()
	r.open()
	big := random(1, 20<<20)
	want := map[string][]byte{"big": big, "small": []byte("small")}
	r.put("big", big)
	r.put("small", want["small"])
	for _, name := range []string{"n02", "n05"} {
		far[name].gone()
	}
	for name, b := range map[string][]byte{"later": random(2, 9<<20), "tiny": []byte("tiny")} {
		want[name] = b
		var err error
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			if err = r.tryPut(name, b); err == nil {
				break
			}
			if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrRetry) {
				t.Fatalf("put %s with two nodes gone: %v", name, err)
			}
		}
		if err != nil {
			t.Fatalf("put %s with two nodes gone: %v", name, err)
		}
	}
	for name, b := range want {
		r.mustRead(name, b)
	}
	r.close()
	r.loseIndex()
	r.open()
	for name, b := range want {
		r.mustRead(name, b)
	}
	if _, err := r.st.Repair(t.Context()); err != nil {
		t.Error(err)
	}
	if st, err := r.st.Status(t.Context()); err != nil || st.PacksShort != 0 {
		t.Errorf("%d packs are short, %v", st.PacksShort, err)
	}
	if res, err := r.scrub(fast); err != nil {
		t.Errorf("scrub: %+v, %v", res, err)
	}
}
