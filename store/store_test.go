package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"cairn/id"
	"cairn/index/kv/memkv"
	"cairn/keys"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs/crashfs"
	"cairn/record"
)

// rig is a store on six nodes in memory.
type rig struct {
	t       *testing.T
	cluster id.Cluster
	ring    *keys.Keyring
	fs      map[string]*crashfs.FS
	nodes   map[string]*disk.Node
	engine  *memkv.Engine
	genesis *Genesis
	st      *Store
	log     *slog.Logger
	wrap    func(name string, n node.Store) node.Store // what the store sees of a node
	change  func(*Config)
	away    map[string]bool // directories that cannot be opened
	space   disk.Space
}

func newRig(t *testing.T) *rig {
	return newRigOn(t, func(string) *crashfs.FS { return crashfs.New() })
}

// newRigOn begins a store on filesystems of the test's.
func newRigOn(t *testing.T, fsys func(name string) *crashfs.FS) *rig {
	t.Helper()
	return newRigOf(t, 6, 2, fsys)
}

// newRigOf begins a store of so many nodes, which survives the loss of m.
func newRigOf(t *testing.T, nodes, m int, fsys func(name string) *crashfs.FS) *rig {
	t.Helper()
	r := &rig{t: t, cluster: id.Cluster{1, 2, 3}, ring: testKeyring(t, id.Cluster{1, 2, 3}), fs: map[string]*crashfs.FS{}, nodes: map[string]*disk.Node{}, engine: memkv.New(memkv.Options{}), genesis: &Genesis{M: m, Buckets: []string{"main"}}}
	r.log = slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		r.log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	for i := range nodes {
		name := fmt.Sprintf("n%02d", i+1)
		r.fs[name] = fsys(name)
		nid, err := disk.Format(r.fs[name], disk.Config{Cluster: r.cluster})
		if err != nil {
			t.Fatal(err)
		}
		r.genesis.Members = append(r.genesis.Members, record.Member{ID: nid, Name: name})
	}
	if overLinks() {
		r.wrap = func(_ string, n node.Store) node.Store { return linked(t, n) }
	}
	r.open()
	t.Cleanup(func() {
		if r.st != nil {
			r.close()
		}
	})
	return r
}

// stores opens the nodes alone.
func (r *rig) stores() map[string]node.Store {
	r.t.Helper()
	out := map[string]node.Store{}
	for name, fs := range r.fs {
		n, err := disk.Open(fs, disk.Config{Cluster: r.cluster})
		if err != nil {
			r.t.Fatal(err)
		}
		r.nodes[name], out[name] = n, n
	}
	return out
}

func (r *rig) closeNodes() {
	for _, n := range r.nodes {
		n.Close()
	}
	r.nodes = map[string]*disk.Node{}
}

func (r *rig) tryOpen() error {
	stores, absent := map[string]node.Store{}, map[string]error{}
	for name, fs := range r.fs {
		if r.away[name] {
			absent[name] = node.ErrUnavailable
			continue
		}
		n, err := disk.Open(fs, disk.Config{Cluster: r.cluster, Dir: "/data/nodes/" + name, Space: &r.space})
		if err != nil {
			absent[name] = err
			continue
		}
		r.nodes[name], stores[name] = n, n
		if r.wrap != nil {
			stores[name] = r.wrap(name, n)
		}
	}
	cfg := Config{Cluster: r.cluster, Nodes: stores, Absent: absent, Keyring: r.ring, Engine: r.engine, Genesis: r.genesis, Log: r.log,
		ListWindow: 7} // so that every start of a test walks through several
	if r.change != nil {
		r.change(&cfg)
	}
	st, err := Open(context.Background(), cfg)
	if err != nil {
		r.closeNodes()
		r.engine = r.engine.Reopen()
		return err
	}
	r.st = st
	return nil
}

func (r *rig) open() {
	r.t.Helper()
	if err := r.tryOpen(); err != nil {
		r.t.Fatal(err)
	}
}

// idle starts the store anew without its background jobs, from now on: nothing but
// the test adds to the log.
func (r *rig) idle() {
	r.change = func(c *Config) { c.idle, c.Lag = true, noDeadline } // no shard on a second node
	r.close()
	r.open()
}

// close stops the store cleanly.
func (r *rig) close() {
	r.t.Helper()
	if err := r.st.Close(context.Background()); err != nil {
		r.t.Error(err)
	}
	r.st = nil
	for _, n := range r.nodes {
		if err := n.Close(); err != nil && !errors.Is(err, node.ErrMissing) {
			r.t.Error(err)
		}
	}
	r.nodes = map[string]*disk.Node{}
	r.engine = r.engine.Reopen()
}

// wipe empties a node's directory under the running process.
func (r *rig) wipe(name string) { r.fs[name] = crashfs.New() }

func (r *rig) put(key string, b []byte) {
	r.t.Helper()
	if err := r.tryPut(key, b); err != nil {
		r.t.Fatalf("put %s: %v", key, err)
	}
}

func (r *rig) tryPut(key string, b []byte) error {
	_, err := r.st.Put(context.Background(), "main", key, bytes.NewReader(b), PutOptions{Size: int64(len(b))})
	return err
}

func (r *rig) read(key string) ([]byte, error) {
	o, err := r.st.Get(context.Background(), "main", key, GetOptions{})
	if err != nil {
		return nil, err
	}
	body := o.Body(0, o.Object.Size)
	defer body.Close()
	return io.ReadAll(body)
}

func (r *rig) mustRead(key string, want []byte) {
	r.t.Helper()
	got, err := r.read(key)
	if err != nil {
		r.t.Fatalf("get %s: %v", key, err)
	}
	if !bytes.Equal(got, want) {
		r.t.Fatalf("get %s: %d bytes that are not the %d stored", key, len(got), len(want))
	}
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	src.Read(b)
	return b
}

func TestWhatIsPutIsReadBack(t *testing.T) {
	r := newRig(t)
	objects := map[string][]byte{}
	for i, n := range []int{0, 1, 4096, smallObject, smallObject + 1, 300_000, 5 << 20, 40 << 20} {
		key := fmt.Sprintf("size/%d", n)
		objects[key] = random(uint64(i), n)
		r.put(key, objects[key])
	}
	check := func() {
		t.Helper()
		for key, want := range objects {
			r.mustRead(key, want)
		}
	}
	check()
	r.close()
	r.open()
	check()
	r.close()
	r.engine = memkv.New(memkv.Options{}) // the index is lost
	r.open()
	check()
	r.close()
	r.wipe("n02")
	r.wipe("n05")
	r.open()
	check()
	r.put("after", []byte("two nodes gone"))
	r.mustRead("after", []byte("two nodes gone"))
}

func TestListingFollowsWrites(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	for _, k := range []string{"a/1", "a/2", "b", "c/x/1"} {
		r.put(k, []byte(k))
	}
	page, err := r.st.List(ctx, "main", ListOptions{Delimiter: "/"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(page.Prefixes, len(page.Objects)), "[a/ c/] 1"; got != want {
		t.Errorf("level of the bucket: %s, want %s", got, want)
	}
	if _, err := r.st.Delete(ctx, "main", "b", Conditions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.read("b"); !errors.Is(err, ErrNoObject) {
		t.Errorf("a deleted object is read: %v, want ErrNoObject", err)
	}
	if page, err = r.st.List(ctx, "main", ListOptions{}); err != nil || len(page.Objects) != 3 {
		t.Errorf("after a delete %d objects are listed, %v; want 3", len(page.Objects), err)
	}
	if o, err := r.st.Undelete(ctx, "main", "b"); err != nil || o.Size != 1 {
		t.Fatalf("undelete: %+v, %v", o, err)
	}
	r.mustRead("b", []byte("b"))
}

func TestLostNodesAreReplaced(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	big := random(7, 20<<20)
	r.put("big", big)
	r.put("small", []byte("small"))
	r.close()
	r.wipe("n01")
	r.wipe("n04")
	r.open()
	r.mustRead("big", big)
	for _, name := range []string{"n01", "n04"} {
		if _, err := disk.Format(r.fs[name], disk.Config{Cluster: r.cluster}); err != nil {
			t.Fatal(err)
		}
		n, err := disk.Open(r.fs[name], disk.Config{Cluster: r.cluster})
		if err != nil {
			t.Fatal(err)
		}
		r.nodes[name] = n
		if err := r.st.ReplaceNode(ctx, name, n); err != nil {
			t.Fatalf("replace %s: %v", name, err)
		}
	}
	r.put("more", big[:1<<20])
	r.mustRead("big", big)
	for range 3 {
		r.close()
		r.open()
		r.mustRead("big", big)
		r.mustRead("small", []byte("small"))
		r.mustRead("more", big[:1<<20])
	}
	r.close()
	r.engine = memkv.New(memkv.Options{})
	r.open()
	r.mustRead("big", big)
}

func TestDeduplication(t *testing.T) {
	r := newRig(t)
	big := random(9, 30<<20)
	r.put("one", big)
	before, err := r.st.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	r.put("two", big)
	after, err := r.st.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if after.LogicalBytes != 2*before.LogicalBytes || after.UniqueBytes != before.UniqueBytes {
		t.Errorf("logical %d to %d, unique %d to %d; want twice the logical and the same unique bytes", before.LogicalBytes, after.LogicalBytes, before.UniqueBytes, after.UniqueBytes)
	}
	r.mustRead("two", big)
}

// The zero version names the newest one where something is read, and nothing where
// something is removed for good.
func TestDeleteOfNoVersionDeletesNone(t *testing.T) {
	r := newRig(t)
	r.put("a", []byte("a"))
	if err := r.st.DeleteVersion(context.Background(), "main", "a", id.Version{}, false); !errors.Is(err, ErrInvalid) {
		t.Errorf("delete of the zero version: %v, want ErrInvalid", err)
	}
	r.mustRead("a", []byte("a"))
}

// A pack that the log writer does not take will never be adopted: it must not hold
// the low-water mark down for the life of the process.
func TestPackRefusedByTheQueueIsForgotten(t *testing.T) {
	r := newRig(t)
	r.put("before", []byte("x"))
	time.Sleep(50 * time.Millisecond) // the log writer waits to be woken
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	fill := func(n int) {
		r.st.writer.mu.Lock()
		r.st.writer.queue = slices.Repeat([]*submission{{ctx: gone}}, n)
		r.st.writer.mu.Unlock()
	}
	fill(queueLimit)
	big := random(1, 1<<20)
	if _, err := r.st.Put(context.Background(), "main", "big", bytes.NewReader(big), PutOptions{Size: -1}); !errors.Is(err, ErrBusy) {
		t.Errorf("put with a queue that is full: %v, want ErrBusy", err)
	}
	fill(0)
	r.st.packs.mu.Lock()
	low, inflight, counter := len(r.st.packs.low), len(r.st.packs.inflight), r.st.packs.counter
	r.st.packs.mu.Unlock()
	if low > 0 || inflight > 0 || r.st.packs.lowWater() != counter+1 {
		t.Errorf("%d packs and %d chunks are still waited for; the mark is at %d of %d", low, inflight, r.st.packs.lowWater(), counter)
	}
	r.put("big", big)
	r.mustRead("big", big)
}
