package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/node/nodetest"
	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
	"cairn/pack"
)

func small(p uint64, l int) nodetest.Shard {
	return nodetest.Shard{Kind: pack.Data, Pack: p, Len: l, Seed: p}
}

func logShard(seq uint64, l int) nodetest.Shard {
	return nodetest.Shard{Kind: pack.Log, Pack: 1e6 + seq, Len: l, Seed: seq, Epoch: 1, Seq: seq}
}

// tiny makes segments turn after a few shards.
func tiny(seed uint64) Config {
	cfg := testConfig(seed)
	cfg.first, cfg.MaxJournal, cfg.MaxData = 64<<10, 64<<10, 256<<10
	return cfg
}

func newNode(t *testing.T, fsys vfs.FS, cfg Config) *Node {
	t.Helper()
	mustFormat(t, fsys, cfg)
	n := mustOpen(t, fsys, cfg)
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func mustPut(t testing.TB, n *Node, s nodetest.Shard) id.Instance {
	t.Helper()
	i, err := nodetest.Put(t.Context(), n, 1, s)
	if err != nil {
		t.Fatalf("put %+v: %v", s, err)
	}
	return i
}

func intact(n *Node, s nodetest.Shard) error {
	want := s.Bytes()
	got, err := nodetest.Read(context.Background(), n, s.Key(), len(want))
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%+v reads as other bytes", s)
	}
	return err
}

// queued waits until some requests wait for an appender.
func queued(t *testing.T, a *appender, want int) {
	t.Helper()
	for range 5000 {
		if len(a.queue) >= want {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%d requests wait, want %d", len(a.queue), want)
}

func wantErr(t *testing.T, what string, err, sentinel error) {
	t.Helper()
	if !errors.Is(err, sentinel) {
		t.Errorf("%s: %v, want %v", what, err, sentinel)
	}
}

// TestFaultyHistories are random histories in which calls of the filesystem
// fail: syncs that drop what they did not write, torn writes, a full disk, no
// descriptors.
func TestFaultyHistories(t *testing.T) {
	t.Parallel()
	seeds := uint64(300)
	if long() {
		seeds = 6000
	}
	for seed := range seeds {
		if err := history(seed, faults); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// faults draws what fails in one run of a node.
func faults(rng *rand.Rand) crashfs.Injector {
	var rules []crashfs.Rule
	for range 1 + rng.IntN(4) {
		r := crashfs.Rule{From: 1 + rng.IntN(25), Count: 1 + rng.IntN(3)}
		switch rng.IntN(7) {
		case 0, 1:
			r.Kind, r.Fault = crashfs.OpDatasync, crashfs.Fault{Err: syscall.EIO, Drop: rng.IntN(2) == 0}
		case 2:
			r.Kind, r.Fault = crashfs.OpWritev, crashfs.Fault{Err: syscall.EIO, Torn: rng.IntN(9000)}
		case 3:
			r.Kind, r.Fault = crashfs.OpWritev, crashfs.Fault{Err: syscall.ENOSPC, Torn: rng.IntN(9000)}
		case 4:
			r.Kind, r.Fault = crashfs.OpSync, crashfs.Fault{Err: syscall.EIO, Drop: true}
		case 5:
			kinds := []crashfs.Kind{crashfs.OpOpen, crashfs.OpAllocate, crashfs.OpRename, crashfs.OpRemove, crashfs.OpPunch, crashfs.OpTruncate, crashfs.OpWrite, crashfs.OpFileStat, crashfs.OpStat}
			r.Kind, r.Fault = kinds[rng.IntN(len(kinds))], crashfs.Fault{Err: syscall.EMFILE}
		case 6:
			r.Kind, r.Fault = crashfs.OpSyncDir, crashfs.Fault{Err: syscall.EIO}
		}
		r.From = 1 + rng.IntN(r.From)
		rules = append(rules, r)
	}
	return crashfs.Rules(rules...)
}

// TestFailedSync (H35, W18): the sync fails, the pages count as clean, a retry
// would say yes.
func TestFailedSync(t *testing.T) {
	fsys := crashfs.New()
	cfg := tiny(1)
	cfg.MarkAfter = time.Hour
	n := newNode(t, fsys, cfg)
	mustPut(t, n, small(1, 5000))
	const seg = "journal/00000001.new" // the name it was opened under
	fsys.Inject(crashfs.Rules(crashfs.Rule{Kind: crashfs.OpDatasync, Name: seg, Count: 1, Fault: crashfs.Fault{Err: syscall.EIO, Drop: true}}))
	fsys.StartTrace()
	_, err := nodetest.Put(t.Context(), n, 1, small(2, 5000))
	wantErr(t, "put whose sync failed", err, node.ErrUnavailable)
	wantErr(t, "put whose sync failed", err, syscall.EIO)
	_, _, err = n.Stat(t.Context(), small(2, 0).Key())
	wantErr(t, "stat of it", err, node.ErrNotFound)
	mustPut(t, n, small(3, 5000))
	mustPut(t, n, small(2, 5000))
	failed := false
	for _, op := range fsys.Trace() {
		changes := op.Kind == crashfs.OpWrite || op.Kind == crashfs.OpWritev || op.Kind == crashfs.OpDatasync || op.Kind == crashfs.OpSync || op.Kind == crashfs.OpTruncate
		if changes && op.Name == seg && failed {
			t.Errorf("%v after its sync failed", op)
		}
		failed = failed || op.Kind == crashfs.OpDatasync && op.Name == seg
	}
	fsys = fsys.Crash(newRand(1))
	n = mustOpen(t, fsys, cfg)
	defer n.Close()
	for p := uint64(1); p <= 3; p++ {
		if err := intact(n, small(p, 5000)); err != nil {
			t.Errorf("after the power cut: %v", err)
		}
	}
}

func segNames(n *Node, k segKind) []string {
	names, _ := n.fs.ReadDir(k.dir())
	var out []string
	for _, name := range names {
		if strings.HasSuffix(name, ".seg") {
			out = append(out, name)
		}
	}
	return out
}

// TestFailedSyncFailsTheWholeGroup: every put that waited on that sync hears of it.
func TestFailedSyncFailsTheWholeGroup(t *testing.T) {
	fsys := crashfs.New()
	cfg := testConfig(1)
	cfg.MarkAfter = time.Hour
	n := newNode(t, fsys, cfg)
	mustPut(t, n, small(100, 1000))
	hold, held := make(chan struct{}), make(chan struct{})
	var syncs atomic.Int32
	fsys.Inject(func(op crashfs.Op) crashfs.Fault {
		if op.Kind == crashfs.OpDatasync && op.Name == "journal/00000001.new" { // the name it was opened under
			if syncs.Add(1) == 1 {
				close(held)
				return crashfs.Fault{Wait: hold}
			}
			return crashfs.Fault{Err: syscall.EIO, Drop: true}
		}
		return crashfs.Fault{}
	})
	var wg sync.WaitGroup
	errs := make([]error, 20)
	put := func(i int) {
		wg.Go(func() { _, errs[i] = nodetest.Put(context.Background(), n, 1, small(uint64(i), 1000)) })
	}
	put(0)
	<-held
	for i := 1; i < len(errs); i++ {
		put(i) // these wait for the next sync together
	}
	queued(t, n.journal, len(errs)-1)
	close(hold)
	wg.Wait()
	if errs[0] != nil {
		t.Errorf("the put before: %v", errs[0])
	}
	for i, err := range errs[1:] {
		wantErr(t, "put", err, node.ErrUnavailable)
		_, _, err = n.Stat(t.Context(), small(uint64(i+1), 0).Key())
		wantErr(t, "stat after a failed put", err, node.ErrNotFound)
	}
	for i := range errs {
		mustPut(t, n, small(uint64(i), 1000))
	}
}

// TestLyingSync: a disk that acknowledges and keeps nothing. What holds then is
// that no wrong byte is ever returned, and that a node which has lost its
// identity, its state or a directory does not open as if nothing had happened.
func TestLyingSync(t *testing.T) {
	t.Parallel()
	seeds := uint64(200)
	if long() {
		seeds = 5000
	}
	lost, refused := 0, 0
	for seed := range seeds {
		rng := newRand(seed)
		fsys := crashfs.New()
		cfg := tiny(seed)
		cfg.Want = mustFormat(t, fsys, cfg)
		n := mustOpen(t, fsys, cfg)
		put := func(p uint64) { _, _ = nodetest.Put(t.Context(), n, 1, small(p, 1000+rng.IntN(80<<10))) }
		for p := range uint64(5) {
			put(p)
		}
		fsys.Inject(crashfs.Rules(crashfs.Rule{From: 1 + rng.IntN(30), Fault: crashfs.Fault{Lie: true}}))
		rng = newRand(seed)
		sizes := map[uint64]int{}
		for p := range uint64(15) {
			sizes[p] = 1000 + rng.IntN(80<<10)
			if _, err := nodetest.Put(t.Context(), n, 1, small(p, sizes[p])); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		fsys = fsys.Crash(rng)
		_ = n.Close()
		fsys.Inject(nil)
		n, err := Open(fsys, cfg)
		if err != nil {
			if !errors.Is(err, node.ErrDamaged) && !errors.Is(err, node.ErrMissing) {
				t.Fatalf("seed %d: open: %v", seed, err)
			}
			refused++
			continue
		}
		for p, size := range sizes {
			switch err := intact(n, small(p, size)); {
			case errors.Is(err, node.ErrNotFound), errors.Is(err, node.ErrDamaged):
				lost++
			case err != nil:
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		_ = n.Close()
	}
	if lost == 0 {
		t.Error("nothing was ever lost: the disk did not lie")
	}
	t.Logf("%d shards lost, %d opens refused", lost, refused)
}

// TestFullDisk fills a disk, and finds that nothing is lost, that deletes still
// go, and that their space can be written again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	disk := crashfs.NewDisk(crashfs.DiskConfig{Bytes: size})
	fsys := disk.New()
	cfg := tiny(1)
	n := newNode(t, fsys, cfg)
	put := func(why node.Purpose, s nodetest.Shard) (id.Instance, error) {
		return n.Put(t.Context(), nodetest.By(1), why, nodetest.Split(s.Bytes(), 0))
	}
	fill := func(why node.Purpose, from uint64) (held []uint64) {
		for p := from; ; p++ {
			if _, err := put(why, small(p, 100<<10)); err != nil {
				wantErr(t, "put on a full disk", err, node.ErrFull)
				return held
			}
			held = append(held, p)
		}
	}
	free := func() int64 { u, _ := fsys.Usage(); return u.FreeBytes }
	held := fill(node.ForClient, 0)
	if f := free(); f < size/20-1<<20 || len(held) < 200 {
		t.Errorf("clients' data stopped at %d bytes free, after %d shards", f, len(held))
	}
	if u, err := n.Usage(t.Context()); err != nil || u.PutsAllowed && free() < size/20 {
		t.Errorf("usage of a full node: %+v, %v", u, err)
	}
	if _, err := put(node.ForLog, logShard(1, 4000)); err != nil {
		t.Errorf("a log pack on a disk that is full for clients: %v", err)
	}
	held = append(held, fill(node.ForCompaction, 1000)...)
	held = append(held, fill(node.ForRepair, 2000)...)
	for _, p := range held {
		if err := intact(n, small(p, 100<<10)); err != nil {
			t.Fatal(err)
		}
	}
	// Others fill the rest: now even the last mark is passed.
	gap := free()
	disk.Occupy(gap)
	if _, err := put(node.ForLog, logShard(2, 4000)); err == nil {
		t.Error("a log pack was taken with no byte free")
	} else {
		wantErr(t, "log pack", err, node.ErrFull)
	}
	disk.Occupy(-gap)
	for _, p := range held[:100] {
		info, _, err := n.Stat(t.Context(), small(p, 0).Key())
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Delete(t.Context(), nodetest.By(1), info.Key, info.Instance); err != nil {
			t.Fatalf("delete on a full disk: %v", err)
		}
	}
	if err := n.Reclaim(t.Context(), cfg.Now().Add(25*time.Hour)); err != nil {
		t.Fatalf("reclaim: %v", err)
	}
	if f := free(); f < 9<<20 {
		t.Errorf("%d bytes free after a hundred were deleted", f)
	}
	if _, err := put(node.ForClient, small(3000, 100<<10)); err != nil {
		t.Errorf("put into the space that came back: %v", err)
	}
	again := fsys.Crash(newRand(1))
	n = mustOpen(t, again, cfg)
	defer n.Close()
	for _, p := range append(held[100:], 3000) {
		if err := intact(n, small(p, 100<<10)); err != nil {
			t.Errorf("after the power cut: %v", err)
		}
	}
}

// roomy says that there is room without end, so that not the marks stop a node
// but the disk.
type roomy struct{ *crashfs.FS }

func (r roomy) Usage() (vfs.Usage, error) {
	u, err := r.FS.Usage()
	u.TotalBytes, u.FreeBytes = 1<<50, 1<<50
	return u, err
}

// TestEveryFullDiskPoint runs into a full disk at every point of a history.
func TestEveryFullDiskPoint(t *testing.T) {
	t.Parallel()
	for room := int64(100 << 10); room < 900<<10; room += 4 << 10 {
		disk := crashfs.NewDisk(crashfs.DiskConfig{Bytes: 64 << 20})
		fsys := disk.New()
		cfg := tiny(uint64(room))
		cfg.Want = mustFormat(t, fsys, cfg)
		n := mustOpen(t, roomy{fsys}, cfg)
		u, err := fsys.Usage()
		if err != nil {
			t.Fatal(err)
		}
		disk.Occupy(u.FreeBytes - room)
		m := newModel()
		m.next = 1e6
		rng := newRand(uint64(room))
		for range 25 {
			if err := m.step(n, rng); err != nil {
				t.Fatalf("%d bytes free: %v", room, err)
			}
		}
		if err := m.check(n); err != nil {
			t.Fatalf("%d bytes free: %v", room, err)
		}
		_ = n.Close()
		if room%8 == 0 {
			fsys = fsys.Crash(rng)
		} else {
			fsys = fsys.Kill()
		}
		n, err = Open(fsys, cfg)
		if err != nil {
			t.Fatalf("%d bytes free: open: %v", room, err)
		}
		if err := m.check(n); err != nil {
			t.Fatalf("%d bytes free, reopened: %v", room, err)
		}
		_ = n.Close()
	}
}

// TestCouldNotAsk (H41): no descriptor, no inode, a bad read are not "not there".
func TestCouldNotAsk(t *testing.T) {
	fsys := crashfs.New()
	cfg := tiny(1)
	cfg.MaxFiles = 8
	n := newNode(t, fsys, cfg)
	for p := range uint64(20) {
		mustPut(t, n, small(p, 100<<10))
	}
	for _, kind := range []crashfs.Kind{crashfs.OpOpen, crashfs.OpRead} {
		for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.EIO, syscall.ENFILE} {
			fsys.Inject(crashfs.Rules(crashfs.Rule{Kind: kind, Fault: crashfs.Fault{Err: errno}}))
			asked := 0
			for p := range uint64(20) {
				for what, err := range map[string]error{
					"read": intact(n, small(p, 100<<10)), "verify": n.Verify(t.Context(), small(p, 0).Key()),
				} {
					if err != nil {
						asked++
						wantErr(t, what, err, node.ErrUnavailable)
						wantErr(t, what, err, errno)
					}
				}
			}
			if asked == 0 {
				t.Errorf("no read met %v of %v", errno, kind)
			}
			fsys.Inject(nil)
			if err := intact(n, small(0, 100<<10)); err != nil {
				t.Errorf("after the fault: %v", err)
			}
		}
	}
	// A new segment cannot be made.
	fsys.Inject(crashfs.Rules(crashfs.Rule{Kind: crashfs.OpOpen, Fault: crashfs.Fault{Err: syscall.EMFILE}}))
	var err error
	for p := uint64(100); err == nil && p < 120; p++ {
		_, err = nodetest.Put(t.Context(), n, 1, small(p, 100<<10))
	}
	wantErr(t, "put without descriptors", err, node.ErrUnavailable)
	fsys.Inject(nil)
	mustPut(t, n, small(200, 100<<10))
	// And an open that cannot ask says so.
	_ = n.Close()
	for nth := 1; ; nth++ {
		fsys.Inject(crashfs.Rules(crashfs.Rule{Kind: crashfs.OpAny, From: nth, Count: 1, Fault: crashfs.Fault{Err: syscall.EIO}}))
		m, err := Open(fsys, cfg)
		fsys.Inject(nil)
		if err != nil {
			if !errors.Is(err, node.ErrUnavailable) || errors.Is(err, node.ErrMissing) || errors.Is(err, node.ErrDamaged) {
				t.Fatalf("open with EIO at operation %d: %v", nth, err)
			}
			continue
		}
		if err := intact(m, small(200, 100<<10)); err != nil {
			t.Errorf("open with EIO at operation %d: %v", nth, err)
		}
		_ = m.Close()
		if nth > 3 {
			break
		}
	}
}

// TestGone (H39): the directory is removed, or another appears in its place,
// under a running node.
func TestGone(t *testing.T) {
	for name, vanish := range map[string]func(fsys *crashfs.FS){
		"rm -rf":         func(fsys *crashfs.FS) { _ = fsys.RemoveAll(".") },
		"segments only":  func(fsys *crashfs.FS) { _ = fsys.RemoveAll("journal"); _ = fsys.RemoveAll("data") },
		"node.json only": func(fsys *crashfs.FS) { _ = fsys.RemoveAll("node.json") },
		"node.json again": func(fsys *crashfs.FS) {
			b, _ := vfs.ReadFile(fsys, "node.json", 4096)
			_ = vfs.WriteFile(fsys, "node.json", b)
		},
		"mount": func(fsys *crashfs.FS) {
			other := fsys.Disk().New()
			_, _ = Format(other, testConfig(99))
			fsys.Swap(other)
		},
		"another node": func(fsys *crashfs.FS) {
			other := fsys.Disk().New()
			cfg := testConfig(98)
			_, _ = Format(other, cfg)
			if n, err := Open(other, cfg); err == nil {
				_, _ = nodetest.Put(context.Background(), n, 1, small(1, 1000))
				_ = n.Close()
			}
			fsys.Swap(other)
		},
	} {
		for _, size := range []int{1000, 100 << 10} {
			fsys := crashfs.New()
			n := newNode(t, fsys, testConfig(1))
			mustPut(t, n, small(1, size))
			vanish(fsys)
			_, err := nodetest.Put(t.Context(), n, 1, small(2, size))
			wantErr(t, name+": put", err, node.ErrMissing)
			for what, err := range map[string]error{
				"read": intact(n, small(1, size)), "promise": n.Promise(t.Context(), nodetest.By(9)),
				"write file": n.WriteFile(t.Context(), nodetest.By(9), node.ClusterFile, nil),
			} {
				wantErr(t, name+": "+what, err, node.ErrMissing)
			}
			if err := n.Close(); err != nil {
				t.Errorf("%s: close: %v", name, err)
			}
		}
	}
	// It goes on where it was moved to, but a start would not find it.
	for _, c := range []struct {
		inode uint64
		err   error
		want  error
	}{{0, fs.ErrNotExist, node.ErrMissing}, {0, syscall.ENOTDIR, node.ErrMissing}, {1, nil, node.ErrMissing}, {0, syscall.EIO, node.ErrUnavailable}} {
		fsys := crashfs.New()
		var moved atomic.Bool
		cfg := testConfig(1)
		cfg.Placed = func() (uint64, error) {
			if moved.Load() {
				return c.inode, c.err
			}
			info, err := fsys.Stat("node.json")
			return info.Inode, err
		}
		n := newNode(t, fsys, cfg)
		mustPut(t, n, small(1, 1000))
		moved.Store(true)
		_, err := nodetest.Put(t.Context(), n, 1, small(2, 1000))
		wantErr(t, fmt.Sprintf("put into a node whose place answers %d, %v", c.inode, c.err), err, c.want)
		_, err = n.Usage(t.Context())
		wantErr(t, fmt.Sprintf("usage of a node whose place answers %d, %v", c.inode, c.err), err, c.want)
	}
	// A small file asked for before any put has noticed: not "never written".
	fsys := crashfs.New()
	n := newNode(t, fsys, testConfig(1))
	_ = fsys.RemoveAll(".")
	_, err := n.ReadFile(t.Context(), node.ClusterFile)
	wantErr(t, "read file of a removed node", err, node.ErrMissing)
	if err := n.Promise(t.Context(), nodetest.By(1)); !errors.Is(err, node.ErrMissing) {
		t.Errorf("promise of a removed node: %v", err)
	}
	// Nor are the figures of one that nobody wrote to since.
	fsys = crashfs.New()
	n = newNode(t, fsys, testConfig(1))
	mustPut(t, n, small(1, 1000))
	_ = fsys.RemoveAll(".")
	_, err = n.Usage(t.Context())
	wantErr(t, "usage of a removed node", err, node.ErrMissing)
}

// TestIdentity: every way in which a directory can be not the one that is wanted.
func TestIdentity(t *testing.T) {
	make1 := func() (*crashfs.FS, Config) {
		fsys := crashfs.New()
		cfg := testConfig(1)
		cfg.Want = mustFormat(t, fsys, cfg)
		n := mustOpen(t, fsys, cfg)
		mustPut(t, n, small(1, 1000))
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		return fsys, cfg
	}
	check := func(name string, fsys vfs.FS, cfg Config, want error) {
		t.Helper()
		n, err := Open(fsys, cfg)
		if err == nil {
			_ = n.Close()
		}
		wantErr(t, name, err, want)
		for _, other := range []error{node.ErrMissing, node.ErrDamaged, node.ErrUnavailable, vfs.ErrLocked, errNewer} {
			if other != want && errors.Is(err, other) {
				t.Errorf("%s is two errors at once: %v", name, err)
			}
		}
		if errors.Is(want, node.ErrMissing) && !strings.Contains(err.Error(), "cairn nodes replace NAME") {
			t.Errorf("%s: %v does not say what to do", name, err)
		}
	}
	fsys, cfg := make1()
	n := mustOpen(t, fsys, cfg)
	check("opened twice", fsys.Reopen(), cfg, vfs.ErrLocked)
	if _, err := Format(fsys.Reopen(), cfg); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("format of an open node: %v", err)
	}
	_ = n.Close()
	if _, err := Format(fsys, cfg); err == nil {
		t.Error("a node was formatted again")
	}
	empty := crashfs.New()
	check("empty", empty, cfg, node.ErrMissing)
	if names, _ := empty.ReadDir("."); len(names) > 0 {
		t.Errorf("open left %v in a directory that is not its own", names)
	}
	other := cfg
	other.Cluster = id.Cluster{2}
	check("another cluster", fsys, other, node.ErrMissing)
	other = cfg
	other.Want[0]++
	check("another node", fsys, other, node.ErrMissing)
	other = cfg
	other.Want = id.Node{}
	if n, err := Open(fsys, other); err != nil {
		t.Errorf("any node of the cluster: %v", err)
	} else {
		_ = n.Close()
	}
	rewrite := func(name string, b []byte) *crashfs.FS {
		fsys, _ := make1()
		if err := vfs.WriteFile(fsys, name, b); err != nil {
			t.Fatal(err)
		}
		return fsys
	}
	me := identity{version: 2, cluster: cfg.Cluster, node: cfg.Want}
	check("a newer node.json", rewrite("node.json", me.encode()), cfg, errNewer)
	check("an empty node.json", rewrite("node.json", nil), cfg, node.ErrDamaged)
	b, _ := vfs.ReadFile(fsys, "node.json", 4096)
	for i := range len(b) * 8 {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		check(fmt.Sprintf("node.json with bit %d flipped", i), rewrite("node.json", bad), cfg, node.ErrDamaged)
	}
	for i := range stateLen + smallHead {
		fsys, cfg := make1()
		if err := fsys.Flip("state", int64(i*8+i%8)); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprintf("state with byte %d flipped", i), fsys, cfg, node.ErrDamaged)
	}
	fsys, cfg = make1()
	_ = fsys.Remove("node.json")
	check("segments without a node.json", fsys, cfg, node.ErrDamaged)
	if _, err := Format(fsys, cfg); err == nil {
		t.Error("segments were formatted over")
	}
	fsys, cfg = make1()
	_ = fsys.Remove("state")
	check("no state", fsys, cfg, node.ErrDamaged)
	fsys, cfg = make1()
	_ = fsys.RemoveAll("data")
	check("no data directory", fsys, cfg, node.ErrDamaged)
	// A state file of another node, say restored by hand, is damage: promises.
	a, cfgA := make1()
	bfs := crashfs.New()
	cfgB := testConfig(2)
	mustFormat(t, bfs, cfgB)
	st, _ := vfs.ReadFile(bfs, "state", 4096)
	if err := vfs.WriteFile(a, "state", st); err != nil {
		t.Fatal(err)
	}
	check("another node's state", a, cfgA, node.ErrDamaged)
}

// TestSwappedDirectories (H39): two nodes' directories changed places.
func TestSwappedDirectories(t *testing.T) {
	disk := crashfs.NewDisk(crashfs.DiskConfig{})
	a, b := disk.New(), disk.New()
	cfgA, cfgB := testConfig(1), testConfig(2)
	cfgA.Want, cfgB.Want = mustFormat(t, a, cfgA), mustFormat(t, b, cfgB)
	a.Swap(b)
	for _, c := range []struct {
		fsys *crashfs.FS
		cfg  Config
	}{{a, cfgA}, {b, cfgB}} {
		_, err := Open(c.fsys, c.cfg)
		wantErr(t, "open", err, node.ErrMissing)
	}
}

// TestPromiseWhileSyncIsHeld (H71, W21): a put of epoch 1 has written its bytes
// and waits for its sync when epoch 2 is promised.
func TestPromiseWhileSyncIsHeld(t *testing.T) {
	for _, size := range []int{1000, 100 << 10} {
		fsys := crashfs.New()
		cfg := testConfig(1)
		cfg.MarkAfter = time.Hour
		n := newNode(t, fsys, cfg)
		mustPut(t, n, small(1, size))
		hold, held := make(chan struct{}), make(chan struct{})
		fsys.Inject(func(op crashfs.Op) crashfs.Fault {
			if op.Kind == crashfs.OpDatasync && strings.HasSuffix(op.Name, ".new") {
				close(held)
				return crashfs.Fault{Wait: hold}
			}
			return crashfs.Fault{}
		})
		answer := make(chan error)
		go func() {
			_, err := nodetest.Put(context.Background(), n, 1, small(2, size))
			answer <- err
		}()
		<-held
		if err := n.Promise(t.Context(), nodetest.By(2)); err != nil {
			t.Fatal(err)
		}
		list, err := nodetest.ListAll(t.Context(), n, 10)
		if err != nil {
			t.Fatal(err)
		}
		close(hold)
		if err := <-answer; err == nil && len(list) < 2 {
			t.Errorf("%d bytes: acknowledged under epoch 1, and not in the list made after epoch 2 was promised", size)
		} else if err != nil {
			wantErr(t, "put", err, node.ErrFenced)
		}
	}
}

// TestPromiseWaitsForDeletes: a delete of epoch 1 that was let in takes effect
// before epoch 2's promise is answered, or not at all.
func TestPromiseWaitsForDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := crashfs.New()
		cfg := testConfig(1)
		cfg.MarkAfter = time.Hour
		n := newNode(t, fsys, cfg)
		defer n.Close()
		inst := mustPut(t, n, small(1, 1000))
		fsys.Inject(crashfs.Rules(crashfs.Rule{Kind: crashfs.OpDatasync, Name: "journal/*.new", Fault: crashfs.Fault{Delay: time.Minute}}))
		deleted := make(chan error, 1)
		go func() { deleted <- n.Delete(context.Background(), nodetest.By(1), small(1, 0).Key(), inst) }()
		synctest.Wait()
		if err := n.Promise(t.Context(), nodetest.By(2)); err != nil {
			t.Fatal(err)
		}
		_, _, before := n.Stat(t.Context(), small(1, 0).Key())
		err := <-deleted
		time.Sleep(time.Hour)
		_, _, after := n.Stat(t.Context(), small(1, 0).Key())
		if errors.Is(before, node.ErrNotFound) != errors.Is(after, node.ErrNotFound) {
			t.Errorf("after the promise the shard said %v, an hour later %v; the delete %v", before, after, err)
		}
	})
}

// TestCancelledPutIsWaitedFor (H32): the caller gives up while the node still
// reads its buffer.
func TestCancelledPutIsWaitedFor(t *testing.T) {
	fsys := crashfs.New()
	n := newNode(t, fsys, testConfig(1))
	mustPut(t, n, small(1, 1000))
	hold, held := make(chan struct{}), make(chan struct{}, 10)
	fsys.Inject(func(op crashfs.Op) crashfs.Fault {
		if op.Kind == crashfs.OpWritev {
			held <- struct{}{}
			return crashfs.Fault{Wait: hold}
		}
		return crashfs.Fault{}
	})
	ctx, cancel := context.WithCancel(t.Context())
	s := small(2, 5000)
	b := s.Bytes()
	done := make(chan error, 1)
	go func() {
		_, err := n.Put(ctx, nodetest.By(1), node.ForClient, nodetest.Split(b, 0))
		done <- err
	}()
	<-held
	// Behind it waits one that nobody has looked at: it leaves at once.
	ctx2, cancel2 := context.WithCancel(t.Context())
	done2 := make(chan error, 1)
	go func() {
		_, err := nodetest.Put(ctx2, n, 1, small(3, 5000))
		done2 <- err
	}()
	queued(t, n.journal, 1)
	cancel2()
	wantErr(t, "a put that was not looked at", <-done2, context.Canceled)
	cancel()
	select {
	case err := <-done:
		t.Fatalf("put returned %v while its buffer was being written", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(hold)
	err := <-done
	for i := range b {
		b[i] = 0xee
	}
	if ierr := intact(n, s); ierr != nil {
		t.Errorf("put said %v, read %v", err, ierr)
	}
	_, _, err = n.Stat(t.Context(), small(3, 0).Key())
	wantErr(t, "stat of the one that left", err, node.ErrNotFound)
	mustPut(t, n, small(3, 5000))
}

// TestBackground: the clock alone gives space back and makes a mark durable.
func TestBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := crashfs.New()
		cfg := Config{Cluster: id.Cluster{1}, Rand: seeded{newRand(1)}}
		n := newNode(t, fsys, cfg)
		defer n.Close()
		fsys.StartTrace()
		inst := mustPut(t, n, small(1, 300<<10))
		mustPut(t, n, small(2, 300<<10))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := strings.Count(fsys.TraceText(), "datasync data/"); got != 3 {
			t.Errorf("%d syncs of the data segment, want two puts' and the mark's:\n%s", got, fsys.TraceText())
		}
		if err := n.Delete(t.Context(), nodetest.By(1), small(1, 0).Key(), inst); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24*time.Hour - time.Minute)
		synctest.Wait()
		if u, _ := n.Usage(t.Context()); u.DeadShards != 1 || u.DeadBytes < 300<<10 {
			t.Errorf("before the keep time has passed: %+v", u)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		u, err := n.Usage(t.Context())
		if err != nil || u.DeadShards != 0 || u.LiveShards != 1 {
			t.Errorf("after the keep time: %+v, %v", u, err)
		}
		wantErr(t, "undelete", n.Undelete(t.Context(), nodetest.By(1), small(1, 0).Key(), inst), node.ErrNotFound)
		if err := intact(n, small(2, 300<<10)); err != nil {
			t.Error(err)
		}
	})
}

// TestKeepTimes: data a day, log packs an hour.
func TestKeepTimes(t *testing.T) {
	fsys := crashfs.New()
	cfg := tiny(1)
	n := newNode(t, fsys, cfg)
	data, l := small(1, 100<<10), logShard(1, 30<<10)
	di, li := mustPut(t, n, data), mustPut(t, n, l)
	mustPut(t, n, small(2, 100<<10))
	mustPut(t, n, logShard(2, 30<<10)) // turns the journal
	mustPut(t, n, logShard(3, 30<<10))
	for k, i := range map[node.Key]id.Instance{data.Key(): di, l.Key(): li} {
		if err := n.Delete(t.Context(), nodetest.By(1), k, i); err != nil {
			t.Fatal(err)
		}
	}
	dead := func(after time.Duration) int64 {
		t.Helper()
		if err := n.Reclaim(t.Context(), cfg.Now().Add(after)); err != nil {
			t.Fatal(err)
		}
		u, err := n.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return u.DeadShards
	}
	for _, c := range []struct {
		after time.Duration
		dead  int64
	}{{0, 2}, {time.Hour - 1, 2}, {time.Hour, 1}, {24*time.Hour - 1, 1}, {24 * time.Hour, 0}} {
		if got := dead(c.after); got != c.dead {
			t.Errorf("%v after the delete %d shards are dead, want %d", c.after, got, c.dead)
		}
	}
}

// TestPositionOutlivesItsShard: the highest log position is remembered when the
// shard that took it has gone.
func TestPositionOutlivesItsShard(t *testing.T) {
	fsys := crashfs.New()
	cfg := tiny(1)
	n := newNode(t, fsys, cfg)
	mustPut(t, n, logShard(8, 100))
	inst := mustPut(t, n, logShard(9, 30<<10))
	if err := n.Delete(t.Context(), nodetest.By(1), logShard(9, 0).Key(), inst); err != nil {
		t.Fatal(err)
	}
	mustPut(t, n, small(1, 30<<10)) // turns the journal
	if err := n.Reclaim(t.Context(), cfg.Now().Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if u, err := n.Usage(t.Context()); err != nil || u.DeadShards != 0 {
		t.Fatalf("the shard has not gone: %+v, %v", u, err)
	}
	fsys = fsys.Crash(newRand(1))
	n = mustOpen(t, fsys, cfg)
	defer n.Close()
	s := logShard(9, 100)
	s.Pack = 77
	_, err := nodetest.Put(t.Context(), n, 1, s)
	wantErr(t, "a log pack at a position that was taken", err, node.ErrStalePut)
	s.Attempt = 2
	mustPut(t, n, s)
}

// TestOlderInstanceGoesFirst: a damaged shard was replaced, and the replacement
// deleted. When that one's time has come and the damaged one's has not, the
// damaged one must not be left to speak for the key.
func TestOlderInstanceGoesFirst(t *testing.T) {
	fsys := crashfs.New()
	cfg := testConfig(1)
	now := time.Unix(1000, 0)
	cfg.Now = func() time.Time { return now }
	mustFormat(t, fsys, cfg)
	n := mustOpen(t, fsys, cfg)
	s := small(1, 100<<10)
	mustPut(t, n, s)
	mustPut(t, n, small(2, 100<<10))
	_ = n.Close()
	if err := fsys.Flip("data/00000001.seg", (dataStart+50<<10)*8); err != nil {
		t.Fatal(err)
	}
	n = mustOpen(t, fsys, cfg)
	wantErr(t, "read", intact(n, s), node.ErrDamaged)
	inst := mustPut(t, n, s)
	if err := n.Delete(t.Context(), nodetest.By(1), s.Key(), inst); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		now = now.Add(13 * time.Hour)
		if err := n.Reclaim(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		_ = n.Close()
		n = mustOpen(t, fsys, cfg)
		_, _, err := n.Stat(t.Context(), s.Key())
		wantErr(t, "stat of the deleted shard", err, node.ErrNotFound)
	}
	now = now.Add(25 * time.Hour)
	if err := n.Reclaim(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if u, err := n.Usage(t.Context()); err != nil || u.DeadShards != 0 || u.LiveShards != 1 {
		t.Errorf("in the end: %+v, %v", u, err)
	}
	_ = n.Close()
}

// TestReclaimOrder (H38): tombstone, sync, punch, sync, footer; and a removed
// segment keeps its footer until it is durably gone.
func TestReclaimOrder(t *testing.T) {
	fsys := crashfs.New()
	cfg := testConfig(1)
	cfg.MarkAfter = time.Hour
	n := newNode(t, fsys, cfg)
	inst := mustPut(t, n, small(1, 70<<10))
	mustPut(t, n, small(2, 70<<10))
	fsys.StartTrace()
	if err := n.Delete(t.Context(), nodetest.By(1), small(1, 0).Key(), inst); err != nil {
		t.Fatal(err)
	}
	if err := n.Reclaim(t.Context(), cfg.Now().Add(25*time.Hour)); err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, op := range fsys.Trace() {
		s := op.String()
		for _, step := range []string{"writev journal", "datasync journal", "punch data", "sync data", "rename data"} {
			if strings.HasPrefix(s, step) {
				steps = append(steps, step)
			}
		}
	}
	got := strings.Join(steps, ", ")
	if !strings.HasSuffix(got, "datasync journal, writev journal, rename data, punch data, sync data, rename data") &&
		!strings.HasSuffix(got, "datasync journal, rename data, punch data, sync data, rename data") {
		t.Errorf("order of giving back: %s\n%s", got, fsys.TraceText())
	}
}

// TestRestartsCostNoSpace (H37): what is on disk after 300 power cuts is what
// was after a few, on top of what was written.
func TestRestartsCostNoSpace(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	cfg := testConfig(1)
	cfg.Want = mustFormat(t, fsys, cfg)
	allocated := func(n *Node) int64 {
		u, err := n.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return u.AllocatedBytes - u.LiveBytes
	}
	var early, worst int64
	rng := newRand(1)
	for i := range uint64(300) {
		n := mustOpen(t, fsys, cfg)
		if a := allocated(n); i == 10 {
			early = a
		} else if i > 10 {
			worst = max(worst, a)
		}
		mustPut(t, n, small(2*i, 3000))
		mustPut(t, n, small(2*i+1, 70<<10))
		fsys = fsys.Crash(rng)
		_ = n.Close()
	}
	n := mustOpen(t, fsys, cfg)
	defer n.Close()
	for i := range uint64(300) {
		for _, s := range []nodetest.Shard{small(2*i, 3000), small(2*i+1, 70<<10)} {
			if err := intact(n, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Each put rounds up to blocks, 8 KiB at most; the rest is a few open segments.
	if limit := early + 600*8<<10 + 8<<20; worst > limit {
		t.Errorf("%d bytes beside the shards after 300 power cuts, %d after ten, want at most %d", worst, early, limit)
	}
	if segs := len(segNames(n, dataSeg)) + len(segNames(n, journalSeg)); segs > 80 {
		t.Errorf("%d segments after 300 power cuts", segs)
	}
	t.Logf("beside the shards: %d bytes after 10, at most %d in 300 restarts; %d segments", early, worst, len(n.segs))
}

// TestInstancesAreNeverReused: not even when nothing is left of those that were
// given out.
func TestInstancesAreNeverReused(t *testing.T) {
	fsys := crashfs.New()
	cfg := testConfig(1)
	mustFormat(t, fsys, cfg)
	seen := map[id.Instance]bool{}
	for range 5 {
		n := mustOpen(t, fsys, cfg)
		s := small(1, 100<<10)
		inst := mustPut(t, n, s)
		if seen[inst] {
			t.Fatalf("instance %d given out twice", inst)
		}
		seen[inst] = true
		if err := n.Delete(t.Context(), nodetest.By(1), s.Key(), inst); err != nil {
			t.Fatal(err)
		}
		if err := n.Reclaim(t.Context(), cfg.Now().Add(25*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if u, err := n.Usage(t.Context()); err != nil || u.DeadShards != 0 {
			t.Fatalf("the shard has not gone: %+v, %v", u, err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNotesAreCopiedOn (H38): the journal segment with a tombstone is recycled
// while the shard that it is about stands elsewhere.
func TestNotesAreCopiedOn(t *testing.T) {
	fsys := crashfs.New()
	cfg := tiny(1)
	n := newNode(t, fsys, cfg)
	x, y := small(1, 100<<10), small(2, 100<<10)
	xi, yi := mustPut(t, n, x), mustPut(t, n, y)
	for k, i := range map[node.Key]id.Instance{x.Key(): xi, y.Key(): yi} {
		if err := n.Delete(t.Context(), nodetest.By(1), k, i); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Undelete(t.Context(), nodetest.By(1), y.Key(), yi); err != nil {
		t.Fatal(err)
	}
	first := segNames(n, journalSeg)[0]
	for seq := uint64(1); seq <= 4; seq++ { // the journal turns twice
		inst := mustPut(t, n, logShard(seq, 20<<10))
		if err := n.Delete(t.Context(), nodetest.By(1), logShard(seq, 0).Key(), inst); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Reclaim(t.Context(), cfg.Now().Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, name := range segNames(n, journalSeg) {
		if name == first {
			t.Fatalf("journal segment %s is still there", first)
		}
	}
	fsys = fsys.Crash(newRand(1))
	n = mustOpen(t, fsys, cfg)
	defer n.Close()
	_, _, err := n.Stat(t.Context(), x.Key())
	wantErr(t, "stat of the deleted shard", err, node.ErrNotFound)
	if err := intact(n, y); err != nil {
		t.Errorf("the shard that was brought back: %v", err)
	}
}

// TestReadOfARecycledPlace: a read has found its shard's place, and before it
// reads, the shard goes and the place is written anew. What it reads then is
// neither the shard nor damage.
func TestReadOfARecycledPlace(t *testing.T) {
	fsys := crashfs.New()
	n := newNode(t, fsys, tiny(1))
	a := logShard(1, 20<<10)
	inst := mustPut(t, n, a)
	hold, held := make(chan struct{}), make(chan struct{})
	var reads atomic.Int32
	fsys.Inject(func(op crashfs.Op) crashfs.Fault {
		if op.Kind == crashfs.OpRead && reads.Add(1) == 1 {
			close(held)
			return crashfs.Fault{Wait: hold}
		}
		return crashfs.Fault{}
	})
	answer := make(chan error, 1)
	go func() { answer <- intact(n, a) }()
	<-held
	if err := n.Delete(t.Context(), nodetest.By(1), a.Key(), inst); err != nil {
		t.Fatal(err)
	}
	for seq := uint64(2); seq < 20; seq++ {
		mustPut(t, n, logShard(seq, 20<<10))
		if err := n.Reclaim(t.Context(), n.cfg.Now().Add(2*time.Hour)); err != nil {
			t.Fatal(err)
		}
		info, _, err := n.Stat(t.Context(), logShard(seq, 0).Key())
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Delete(t.Context(), nodetest.By(1), info.Key, info.Instance); err != nil {
			t.Fatal(err)
		}
	}
	close(hold)
	err := <-answer
	wantErr(t, "read", err, node.ErrNotFound)
	if errors.Is(err, node.ErrDamaged) {
		t.Errorf("read: %v", err)
	}
}

// TestVisibleIsNotDurable: a footer that the last run could not make durable is
// seen after a kill. What it decided must still hold after a power cut.
func TestVisibleIsNotDurable(t *testing.T) {
	for seed := range uint64(300) {
		fsys := crashfs.New()
		cfg := testConfig(seed)
		cfg.MarkAfter = time.Hour
		n := newNode(t, fsys, cfg)
		mustPut(t, n, small(1, 5000))
		fsys.Inject(crashfs.Rules(
			crashfs.Rule{Kind: crashfs.OpDatasync, Name: "journal/*.new", Fault: crashfs.Fault{Err: syscall.EIO}},
			crashfs.Rule{Kind: crashfs.OpSyncDir, Name: "journal", Fault: crashfs.Fault{Err: syscall.EIO}}))
		if _, err := nodetest.Put(t.Context(), n, 1, small(2, 100)); err == nil { // one sector: it is kept or not
			t.Fatal("the sync did not fail")
		}
		fsys = fsys.Kill()
		_ = n.Close()
		fsys.Inject(nil)
		n = mustOpen(t, fsys, cfg)
		_, _, before := n.Stat(t.Context(), small(2, 0).Key())
		fsys = fsys.Crash(newRand(seed))
		_ = n.Close()
		n = mustOpen(t, fsys, cfg)
		_, _, after := n.Stat(t.Context(), small(2, 0).Key())
		if (before == nil) != (after == nil) {
			t.Errorf("seed %d: the shard was %v after the kill, %v after the power cut", seed, before, after)
		}
		if err := intact(n, small(1, 5000)); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		_ = n.Close()
	}
}

// TestCleanPagesNoDiskHasSeen (H35): after a failed sync a shard can be read from
// memory that no disk has, and the process is killed. What the next open lists
// it must keep.
func TestCleanPagesNoDiskHasSeen(t *testing.T) {
	fsys := crashfs.New()
	cfg := testConfig(1)
	cfg.MarkAfter = time.Hour
	n := newNode(t, fsys, cfg)
	for p := range uint64(3) {
		mustPut(t, n, small(p, 600<<10))
	}
	fsys.Inject(crashfs.Rules(
		crashfs.Rule{Kind: crashfs.OpDatasync, Name: "data/*.new", Fault: crashfs.Fault{Err: syscall.EIO, Drop: true}},
		crashfs.Rule{Kind: crashfs.OpOpen, Name: "data/*.tmp", Fault: crashfs.Fault{Err: syscall.EMFILE}},
		crashfs.Rule{Kind: crashfs.OpTruncate, Fault: crashfs.Fault{Err: syscall.EIO}}))
	if _, err := nodetest.Put(t.Context(), n, 1, small(3, 600<<10)); err == nil {
		t.Fatal("the sync did not fail")
	}
	fsys = fsys.Kill()
	_ = n.Close()
	fsys.Inject(nil)
	n = mustOpen(t, fsys, cfg)
	if err := intact(n, small(3, 600<<10)); err != nil {
		t.Fatalf("not found again, so there is nothing to test: %v", err)
	}
	fsys = fsys.Crash(newRand(1))
	_ = n.Close()
	n = mustOpen(t, fsys, cfg)
	defer n.Close()
	for p := range uint64(4) {
		if err := intact(n, small(p, 600<<10)); err != nil {
			t.Errorf("after the power cut: %v", err)
		}
	}
}

// TestRemovedSegment: a punched data segment whose tombstones are forgotten is
// removed, with a power cut after each step. Its holes must never look like rot.
func TestRemovedSegment(t *testing.T) {
	ended := false
	for stop := 0; !ended; stop++ {
		for cut := range uint64(6) {
			fsys := crashfs.New()
			cfg := testConfig(1)
			cfg.MaxJournal, cfg.first = 64<<10, 64<<10
			cfg.MaxData = 1 << 20
			n := newNode(t, fsys, cfg)
			mustPut(t, n, small(0, 200<<10)) // makes the next segment no longer than it needs
			insts := map[node.Key]id.Instance{}
			del := func(s nodetest.Shard) {
				_ = n.Delete(t.Context(), nodetest.By(1), s.Key(), insts[s.Key()])
			}
			put := func(s nodetest.Shard) { insts[s.Key()] = mustPut(t, n, s) }
			for p := uint64(1); p <= 4; p++ {
				put(small(p, 80<<10))
			}
			late := cfg.Now().Add(25 * time.Hour)
			for _, p := range []uint64{1, 2, 4} { // 2 and 3 share a segment
				del(small(p, 0))
			}
			_ = n.Reclaim(t.Context(), late)
			for seq := uint64(1); seq <= 4; seq++ { // the tombstones' segment is recycled
				put(logShard(seq, 20<<10))
				del(logShard(seq, 0))
			}
			_ = n.Reclaim(t.Context(), late)
			del(small(3, 0))
			fsys.StopAfter(fsys.Ops() + stop)
			err := n.Reclaim(t.Context(), late)
			ended = err == nil
			fsys = fsys.Crash(newRand(cut))
			_ = n.Close()
			n = mustOpen(t, fsys, cfg)
			if len(n.lost) > 0 {
				t.Fatalf("stopped after %d, cut %d: %+v", stop, cut, n.lost)
			}
			for p := uint64(1); p <= 4; p++ {
				if _, _, err := n.Stat(t.Context(), small(p, 0).Key()); !errors.Is(err, node.ErrNotFound) {
					t.Fatalf("stopped after %d, cut %d: shard %d: %v", stop, cut, p, err)
				}
			}
			if err := intact(n, small(0, 200<<10)); err != nil {
				t.Fatalf("stopped after %d, cut %d: %v", stop, cut, err)
			}
			_ = n.Close()
		}
	}
}

// TestRecordsKnowWhatIsDurable: each record says that everything before its
// group was synced, so that rot below it is told from a torn tail even when no
// mark was ever written.
func TestRecordsKnowWhatIsDurable(t *testing.T) {
	fsys := crashfs.New()
	n := newNode(t, fsys, testConfig(1))
	for p := range uint64(5) {
		mustPut(t, n, small(p, 3000))
	}
	f, err := fsys.OpenFile("journal/00000001.seg", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	off, prev := int64(dataStart), rec{}
	for p := range uint64(5) {
		var b [recordHead]byte
		if _, err := f.ReadAt(b[:], off); err != nil {
			t.Fatal(err)
		}
		h, ok := parseRecHeader(b[:], &n.segs[segID{journalSeg, 1}].inc, off)
		if !ok || h.durable != off || h.prev != prev || h.key != small(p, 0).Key() {
			t.Fatalf("record %d at %d: %+v, %v", p, off, h, ok)
		}
		off, prev = h.end(), h.rec
	}
}

// TestInodesAreKept fills a filesystem that has room and few inodes: clients'
// data is refused while there still are enough for log packs, for promises and
// for another start (H41).
func TestInodesAreKept(t *testing.T) {
	fsys := crashfs.NewDisk(crashfs.DiskConfig{Bytes: 1 << 30, Files: 100}).New()
	cfg := tiny(1)
	n := newNode(t, fsys, cfg)
	put := uint64(0)
	for {
		_, err := nodetest.Put(t.Context(), n, 1, small(put+1, 200<<10))
		if err != nil {
			wantErr(t, "the first put without enough inodes", err, node.ErrFull)
			break
		}
		if put++; put > 100 {
			t.Fatal("100 inodes are enough for everything")
		}
	}
	for seq := range uint64(20) {
		mustPut(t, n, logShard(seq+1, 20<<10))
	}
	for start := range uint64(5) {
		if err := n.Promise(t.Context(), nodetest.By(2+start)); err != nil {
			t.Fatalf("promise: %v", err)
		}
		fsys = fsys.Kill()
		n = mustOpen(t, fsys, cfg)
	}
	for i := range put {
		if err := intact(n, small(i+1, 200<<10)); err != nil {
			t.Errorf("shard %d of %d: %v", i+1, put, err)
		}
	}
	if u, err := n.Usage(t.Context()); err != nil || u.PutsAllowed || !u.LogsAllow {
		t.Errorf("usage: %+v, %v; want puts refused and log packs allowed", u, err)
	}
	_ = n.Close()
}
