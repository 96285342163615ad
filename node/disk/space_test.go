package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/node"
	"cairn/node/nodetest"
	"cairn/node/vfs/crashfs"
)

// TestNodesShareAFilesystem (H52): six nodes on one filesystem fill it at once.
// What they preallocate and what is on its way counts for all of them: clients'
// data leaves its mark, and log packs theirs.
func TestNodesShareAFilesystem(t *testing.T) {
	t.Parallel()
	const size = 128 << 20
	disk := crashfs.NewDisk(crashfs.DiskConfig{Bytes: size})
	space := &Space{}
	var nodes []*Node
	for i := range uint64(6) {
		cfg := tiny(i)
		cfg.first, cfg.MaxJournal, cfg.MaxData = 1<<20, 64<<20, 1<<30 // as they are
		cfg.Space, cfg.Dir = space, fmt.Sprintf("/data/nodes/n%02d", i+1)
		fsys := disk.New()
		// Syncs take their time: what waits for them is on its way.
		fsys.Inject(crashfs.Rules(crashfs.Rule{Kind: crashfs.OpDatasync, Fault: crashfs.Fault{Delay: 100 * time.Microsecond}}))
		nodes = append(nodes, newNode(t, fsys, cfg))
	}
	free := func() int64 {
		u, err := nodes[0].Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return u.FreeBytes
	}
	fill := func(why node.Purpose, shard func(i int) nodetest.Shard) (took int) {
		var wg sync.WaitGroup
		counts := make([]int, len(nodes))
		for n, nd := range nodes {
			wg.Go(func() {
				for i := n * 10000; ; i++ {
					_, err := nd.Put(t.Context(), nodetest.By(1), why, nodetest.Split(shard(i).Bytes(), 0))
					if err == nil {
						counts[n]++
						continue
					}
					e, ok := errors.AsType[*node.RoomError](err)
					if !ok || !errors.Is(err, node.ErrFull) || e.Dir != nd.cfg.Dir || e.Why != why || e.Free <= 0 || e.Need < size/100 {
						t.Errorf("node %d, a filesystem without room: %v (%+v)", n, err, e)
					}
					return
				}
			})
		}
		wg.Wait()
		for _, c := range counts {
			took += c
		}
		return took
	}
	if n := fill(node.ForClient, func(i int) nodetest.Shard { return small(uint64(i), 300<<10) }); n < 100 {
		t.Errorf("the nodes took %d shards of clients' data", n)
	}
	// A new segment has headers, and the one before it a footer, that its put did not count.
	const more = 6 * 24 << 10
	if f := free(); f < size/20-more {
		t.Errorf("clients' data went on to %d bytes free, the mark is %d", f, size/20)
	}
	if n := fill(node.ForLog, func(i int) nodetest.Shard { return logShard(uint64(i)+1, 20<<10) }); n < 10 {
		t.Errorf("below the mark of clients' data the nodes took %d log packs", n)
	}
	if f := free(); f < size/100-more || f > size/20 {
		t.Errorf("log packs went on to %d bytes free, the mark is %d", f, size/100)
	}
	if _, err := nodes[0].Put(t.Context(), nodetest.By(1), node.ForStart, nodetest.Split(logShard(9e5, 20<<10).Bytes(), 0)); err != nil {
		t.Errorf("the first log pack of a start: %v", err)
	}
	for d, n := range space.taken {
		if n != 0 {
			t.Errorf("nothing is on its way, and %d bytes of device %d are held", n, d)
		}
	}
}

// TestEveryShortWrite gives every n-th call that needs room ENOSPC, or lets it
// write a part first: nothing acknowledged goes, reads go on, and when there is
// room again so do writes.
func TestEveryShortWrite(t *testing.T) {
	t.Parallel()
	steps := 20
	if long() {
		steps = 200
	}
	met := 0
	for _, kind := range []crashfs.Kind{crashfs.OpOpen, crashfs.OpAllocate, crashfs.OpWrite, crashfs.OpWritev, crashfs.OpDatasync, crashfs.OpSync, crashfs.OpSyncDir, crashfs.OpRename, crashfs.OpPunch} {
		for _, torn := range []int{0, 1, 4096, 9000} {
			if torn > 0 && kind != crashfs.OpWrite && kind != crashfs.OpWritev {
				continue
			}
			for nth := 1; ; nth++ {
				fault := crashfs.Rule{Kind: kind, From: nth, Count: 3, Fault: crashfs.Fault{Err: syscall.ENOSPC, Torn: torn}}
				hit, err := shortWrites(t, fault, steps, uint64(nth))
				if err != nil {
					t.Fatalf("%v %d to %d fail with ENOSPC, %d bytes written first: %v", kind, nth, nth+2, torn, err)
				}
				if !hit {
					break
				}
				met++
			}
		}
	}
	if met < 100 {
		t.Errorf("%d histories met a full disk", met)
	}
	t.Logf("%d histories met a full disk", met)
}

func shortWrites(t *testing.T, fault crashfs.Rule, steps int, seed uint64) (hit bool, err error) {
	t.Helper()
	fsys := crashfs.New()
	cfg := tiny(seed)
	cfg.Want = mustFormat(t, fsys, cfg)
	n := mustOpen(t, fsys, cfg)
	m, rng := newModel(), newRand(seed)
	m.next = 1e6
	var mu sync.Mutex
	rules := crashfs.Rules(fault)
	fsys.Inject(func(op crashfs.Op) crashfs.Fault {
		if op.Kind == crashfs.OpOpen && op.Flag&os.O_CREATE == 0 {
			return crashfs.Fault{} // needs no room
		}
		f := rules(op)
		mu.Lock()
		defer mu.Unlock()
		hit = hit || f.Err != nil
		return f
	})
	for range steps {
		if err := m.step(n, rng); err != nil {
			return hit, err
		}
	}
	if err := m.check(n); err != nil {
		return hit, err
	}
	fsys.Inject(nil)
	last := small(77, 30<<10)
	if err := m.put(n, m.tried+1, last); err != nil {
		return hit, fmt.Errorf("put when there is room again: %w", err)
	}
	if err := intact(n, last); err != nil {
		return hit, fmt.Errorf("put when there is room again: %w", err)
	}
	_ = n.Close() // a footer may be in its way
	fsys = fsys.Crash(rng)
	if n, err = Open(fsys, cfg); err != nil {
		return hit, fmt.Errorf("open: %w", err)
	}
	defer n.Close()
	if err := m.check(n); err != nil {
		return hit, fmt.Errorf("reopened: %w", err)
	}
	return hit, intact(n, last)
}

// TestReclaimNow: everything tombstoned goes at once, whatever its keep time, and
// what is not stays; on a disk without room too.
func TestReclaimNow(t *testing.T) {
	t.Parallel()
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprintf("full %v", full), func(t *testing.T) {
			disk := crashfs.NewDisk(crashfs.DiskConfig{Bytes: 64 << 20})
			fsys := disk.New()
			cfg := tiny(1)
			cfg.Want = mustFormat(t, fsys, cfg)
			n := mustOpen(t, fsys, cfg)
			var shards []nodetest.Shard
			for i := range uint64(60) {
				shards = append(shards, small(i, 2000+int(i%2)*90000), logShard(i+1, 3000))
			}
			for _, s := range shards {
				mustPut(t, n, s)
			}
			del := func(keep func(i int) bool) (gone int64) {
				for i, s := range shards {
					if keep(i) {
						continue
					}
					info, _, err := n.Stat(t.Context(), s.Key())
					if errors.Is(err, node.ErrNotFound) {
						continue
					}
					if err == nil {
						err = n.Delete(t.Context(), nodetest.By(1), info.Key, info.Instance)
					}
					if err != nil {
						t.Fatal(err)
					}
					gone++
				}
				return gone
			}
			u := func() node.Usage {
				u, err := n.Usage(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				return u
			}
			gone := del(func(i int) bool { return i%5 == 0 })
			if err := n.Reclaim(t.Context(), cfg.Now()); err != nil {
				t.Fatal(err)
			}
			before := u()
			if before.DeadShards != gone {
				t.Fatalf("within the keep time %d of %d deleted shards are left", before.DeadShards, gone)
			}
			if full {
				disk.Occupy(u().FreeBytes)
			}
			got, err := n.ReclaimNow(t.Context())
			after := u()
			if got.Bytes != before.AllocatedBytes-after.AllocatedBytes || got.Left != after.DeadShards || got.Shards != gone-got.Left {
				t.Errorf("reclaimed %+v; before %+v, after %+v", got, before, after)
			}
			if err != nil && !full || got.Left > 0 && !full || got.Bytes < gone/5*90000 {
				t.Errorf("%d shards are deleted; reclaimed %+v, %v", gone, got, err)
			}
			if full && got.Left > 0 { // what came back is room for the rest
				if got, err = n.ReclaimNow(t.Context()); err != nil || got.Left > 0 {
					t.Errorf("once more: %+v, %v", got, err)
				}
			}
			for i, s := range shards {
				err := intact(n, s)
				if i%5 == 0 && err != nil || i%5 != 0 && !errors.Is(err, node.ErrNotFound) {
					t.Errorf("shard %d: %v", i, err)
				}
			}
			if names, err := fsys.ReadDir("journal"); err != nil || len(names) == 0 {
				t.Error(names, err)
			} else {
				for _, name := range names {
					if filepath.Ext(name) == ".free" {
						t.Errorf("%s is kept for later", name)
					}
				}
			}
			if err := n.Close(); err != nil && !full {
				t.Error(err)
			}
			if n, err = Open(fsys.Crash(newRand(2)), cfg); err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			if dead := u().DeadShards; dead != 0 {
				t.Errorf("reopened, %d deleted shards are there", dead)
			}
			for i, s := range shards {
				if err := intact(n, s); i%5 == 0 && err != nil {
					t.Errorf("reopened: shard %d: %v", i, err)
				}
			}
		})
	}
}

// What a filesystem's owner has still to put there is left free by clients' data,
// and by nothing else.
func TestKeptFree(t *testing.T) {
	t.Parallel()
	fsys := crashfs.NewDisk(crashfs.DiskConfig{Bytes: 64 << 20}).New()
	cfg := tiny(1)
	cfg.Space = &Space{}
	n := newNode(t, fsys, cfg)
	put := func(why node.Purpose, s nodetest.Shard) error {
		_, err := n.Put(t.Context(), nodetest.By(1), why, nodetest.Split(s.Bytes(), 0))
		return err
	}
	if err := put(node.ForClient, small(1, 100<<10)); err != nil {
		t.Fatal(err)
	}
	cfg.Space.Keep(1, 62<<20)
	wantErr(t, "clients' data", put(node.ForClient, small(2, 100<<10)), node.ErrFull)
	if u, err := n.Usage(t.Context()); err != nil || u.PutsAllowed || u.PutMark < 62<<20 || !u.LogsAllow {
		t.Errorf("usage: %+v, %v", u, err)
	}
	if err := put(node.ForLog, logShard(1, 4000)); err != nil {
		t.Error(err)
	}
	cfg.Space.Keep(1, 0)
	if err := put(node.ForClient, small(2, 100<<10)); err != nil {
		t.Error(err)
	}
}
