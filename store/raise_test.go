package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/index/kv/memkv"
	"cairn/node"
	"cairn/node/vfs/crashfs"
	"cairn/pack"
	"cairn/record"
)

// raises is a rig of so many nodes that survives the loss of m, and raises that when the
// test says so.
func raises(t *testing.T, nodes, m int) *rig {
	r := newRigOf(t, nodes, m, func(string) *crashfs.FS { return crashfs.New() })
	r.idle()
	return r
}

func (r *rig) tolerate(m int) {
	r.t.Helper()
	if err := r.st.Tolerate(context.Background(), m); err != nil {
		r.t.Fatalf("tolerate %d: %v", m, err)
	}
}

func (r *rig) tryRaise() (*RaiseResult, error) {
	return r.st.raise(context.Background(), fast, func(uint64, uint64, string) {})
}

func (r *rig) raise() {
	r.t.Helper()
	if res, err := r.tryRaise(); err != nil || !res.Raised || res.Left != 0 {
		r.t.Fatalf("raise: %+v, %v", res, err)
	}
}

// least is the lowest number of parity shards of any pack.
func (r *rig) least() (m int) {
	r.t.Helper()
	m = pack.MaxWidth
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(_ id.Pack, row index.PackRow) error {
			m = min(m, int(row.M))
			return nil
		})
	}); err != nil {
		r.t.Fatal(err)
	}
	return m
}

// survivesLossOf takes nodes away for good while the store is stopped, and its index with
// them, and reads everything.
func (r *rig) survivesLossOf(m int, objects map[string][]byte) {
	r.t.Helper()
	r.close()
	keep := map[string]*crashfs.FS{}
	for _, i := range rand.New(rand.NewPCG(uint64(m), 5)).Perm(len(r.fs))[:m] {
		name := fmt.Sprintf("n%02d", i+1)
		keep[name] = r.fs[name]
		r.wipe(name)
	}
	r.loseIndex()
	if err := r.tryOpen(); err != nil {
		r.t.Fatalf("without %d nodes and the index: %v", m, err)
	}
	for key, want := range objects {
		r.mustRead(key, want)
	}
	r.close()
	for name, fs := range keep {
		r.fs[name] = fs
	}
	r.open()
	r.mend()
}

// needs is how many nodes a start may be without: one more is refused.
func (r *rig) needs(m int) {
	r.t.Helper()
	r.close()
	r.away = map[string]bool{}
	for i := range m {
		r.away[fmt.Sprintf("n%02d", i+1)] = true
	}
	if err := r.tryOpen(); err != nil {
		r.t.Fatalf("a start without %d nodes: %v", m, err)
	}
	r.close()
	r.away[fmt.Sprintf("n%02d", m+1)] = true
	if err := r.tryOpen(); !errors.Is(err, ErrUnavailable) {
		r.t.Fatalf("a start without %d nodes: %v", m+1, err)
	}
	r.away = nil
	r.open()
	r.mend()
}

// mend makes packs whole that a start has found as the log's tail without some nodes.
func (r *rig) mend() {
	r.t.Helper()
	if out, err := r.st.Repair(context.Background()); err != nil || out.Short+out.Lost > 0 {
		r.t.Fatalf("repair: %+v, %v", out, err)
	}
}

// mixed puts what lies in data packs, in log packs, and in a list, and leaves chunks
// behind that nothing refers to.
func (r *rig) mixed() map[string][]byte {
	r.t.Helper()
	objects := map[string][]byte{"big": random(1, 40<<20), "small": random(2, 5000), "kept": random(3, 3<<20), "tiny": []byte("x")}
	for key, b := range objects {
		r.put(key, b)
	}
	r.put("gone", random(4, 2<<20))
	r.put("gone too", random(5, 20000))
	r.forget("gone")
	r.forget("gone too")
	return objects
}

// TestRaise: m goes from 2 to 3, and what was there before survives the loss of three nodes,
// with the index; until then a start is without two at the most.
func TestRaise(t *testing.T) {
	r := raises(t, 7, 2)
	objects := r.mixed()
	r.snapshot()
	r.needs(2)
	r.tolerate(3)
	r.needs(2)
	st, err := r.st.Status(context.Background())
	if err != nil || st.M != 2 || st.RaisingTo != 3 || st.PacksToRaise == 0 || !strings.Contains(st.Survives, fmt.Sprintf("raising to m=3: %s left", countOf(st.PacksToRaise, "pack", "packs"))) || !strings.Contains(st.Survives, "2 lost directories") {
		t.Fatalf("%+v, %v", st, err)
	}
	objects["after"] = random(6, 9<<20)
	r.put("after", objects["after"])
	p, err := r.st.Placement(context.Background(), "main", "after", PlacementOptions{})
	if err != nil || p.Packs[0].M != 3 {
		t.Fatalf("what is written now: %+v, %v", p.Packs, err)
	}
	// What nothing refers to any more is found by an upload, and must be worth as much.
	r.raise()
	objects["gone"] = random(4, 2<<20)
	r.put("gone", objects["gone"])
	if got := r.least(); got != 3 {
		t.Errorf("a pack has %d parity shards", got)
	}
	if st, err = r.st.Status(context.Background()); err != nil || st.M != 3 || st.RaisingTo != 0 || strings.Contains(st.Survives, "raising") || !strings.Contains(st.Survives, "3 lost directories") {
		t.Errorf("%+v, %v", st, err)
	}
	r.onNodes()
	r.needs(3)
	r.survivesLossOf(3, objects)
	r.stands(objects)
	r.soundOffline()
	if res, err := r.tryRaise(); err != nil || res.Raised {
		t.Errorf("once more: %+v, %v", res, err)
	}
}

// TestRaiseIsRefused: with too few nodes, to what no store survives, and to less.
func TestRaiseIsRefused(t *testing.T) {
	r := raises(t, 6, 2)
	for m, want := range map[int]error{3: ErrPrecondition, 4: ErrPrecondition, 5: ErrInvalid, 0: ErrInvalid, 1: ErrPrecondition, 2: nil} {
		if err := r.st.Tolerate(context.Background(), m); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("tolerate %d with six nodes: %v, want %v", m, err, want)
		}
	}
	if set := r.st.members.Load(); set.rec.Version != 1 {
		t.Errorf("the node set has version %d", set.rec.Version)
	}
	r.add(NewNode{Name: "n07"}, crashfs.New())
	r.tolerate(3)
	// Nor may nodes go meanwhile that it takes.
	if err := r.st.DrainNode(context.Background(), "n01", true); !errors.Is(err, ErrPrecondition) {
		t.Errorf("drain: %v", err)
	}
	r.raise()
}

// TestRaiseIsCalledOff: m stays, and what was written meanwhile is as wide as it is.
func TestRaiseIsCalledOff(t *testing.T) {
	r := raises(t, 7, 2)
	objects := r.mixed()
	r.tolerate(3)
	objects["between"] = random(8, 5<<20)
	r.put("between", objects["between"])
	r.tolerate(2)
	if res, err := r.tryRaise(); err != nil || res.Raised {
		t.Errorf("%+v, %v", res, err)
	}
	objects["behind"] = random(9, 5<<20)
	r.put("behind", objects["behind"])
	for key, want := range map[string]int{"between": 3, "behind": 2} {
		p, err := r.st.Placement(context.Background(), "main", key, PlacementOptions{})
		if err != nil || p.Packs[0].M != want {
			t.Errorf("%s: %+v, %v", key, p.Packs, err)
		}
	}
	r.needs(2)
	r.survivesLossOf(2, objects)
	r.tolerate(3)
	r.reopen(false)
	r.raise()
	r.tolerate(3)
	r.survivesLossOf(3, objects)
}

// TestRaiseByMore: from one loss to four.
func TestRaiseByMore(t *testing.T) {
	r := raises(t, 9, 1)
	objects := r.mixed()
	r.tolerate(2)
	r.tolerate(4)
	r.raise()
	r.needs(4)
	r.survivesLossOf(4, objects)
	r.soundOffline()
}

// TestWishIsDurable: it is in the log and in the cluster files, whatever else is lost; and a pack
// that was coded before it is not adopted behind it.
func TestWishIsDurable(t *testing.T) {
	r := raises(t, 7, 2)
	r.put("a", random(1, 1<<20))
	var early *record.Adopt
	set := r.st.members.Load()
	early = &record.Adopt{In: id.Main, Pack: id.Pack{1}, K: 4, M: 2}
	for i, m := range set.all[:6] {
		early.Shards = append(early.Shards, record.Place{Node: m.info.ID, Index: uint8(i)})
	}
	r.tolerate(3)
	if err := r.st.writer.submit(context.Background(), &submission{adopts: []*record.Adopt{early}}); !errors.Is(err, ErrRetry) {
		t.Errorf("adopt of a pack of 4+2: %v", err)
	}
	for _, index := range []bool{true, false} {
		r.reopen(index)
		if set := r.st.members.Load(); set.w() != 3 || set.m() != 2 {
			t.Fatalf("index kept %v: %d, on the way to %d", index, set.m(), set.w())
		}
	}
}

// TestUnreadableKeepsTheNumber: m is not raised over a pack that could not be written anew.
func TestUnreadableKeepsTheNumber(t *testing.T) {
	r := raises(t, 7, 2)
	big := random(1, 6<<20)
	r.put("big", big)
	r.put("small", random(2, 3000))
	for p, places := range r.placesOf(pack.Data) {
		for _, x := range places[:3] {
			r.remove(p, x)
		}
	}
	r.tolerate(3)
	res, err := r.tryRaise()
	if err == nil || res.Raised || res.Left == 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	if m := r.st.members.Load().m(); m != 2 {
		t.Fatalf("m is %d", m)
	}
	t.Logf("%v", err)
	r.forgetAll("big")
	r.raise()
}

// forgetAll removes an object and everything that it held.
func (r *rig) forgetAll(key string) {
	r.t.Helper()
	r.forget(key)
	for range 3 {
		if _, err := r.st.Collect(context.Background(), JobOptions{Now: true}); err != nil {
			r.t.Logf("collect: %v", err)
		}
	}
}

// TestRaiseCutAnywhere ends the process behind each shard, cluster file and delete that raising m sends to the
// nodes. What comes up survives what it says, goes on, and in the end three nodes may be lost.
func TestRaiseCutAnywhere(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 5
	}
	for n := 1; ; n += step {
		r := newRigOf(t, 7, 2, func(string) *crashfs.FS { return crashfs.New() })
		c := &cutter{}
		r.wrap = func(_ string, st node.Store) node.Store { return cutNode{st, c} }
		r.change = func(cfg *Config) { cfg.idle, cfg.Lag, cfg.Patience = true, noDeadline, 300*time.Millisecond }
		r.close()
		r.open()
		objects := map[string][]byte{"big": random(1, 5<<20), "small": random(2, 5000), "tiny": []byte("x")}
		for key, b := range objects {
			r.put(key, b)
		}
		c.arm(n)
		err := r.st.Tolerate(context.Background(), 3)
		if err == nil {
			_, err = r.tryRaise()
		}
		over := !c.disarm()
		if over && err != nil {
			t.Fatalf("without a cut: %v", err)
		}
		_ = r.st.Close(cancelled())
		r.st = nil
		r.closeNodes()
		for name, fs := range r.fs {
			r.fs[name] = fs.Kill()
		}
		if r.engine = r.engine.Reopen(); n%2 == 0 {
			r.engine = memkv.New(memkv.Options{})
		}
		if err := r.tryOpen(); err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		set := r.st.members.Load()
		if m := set.m(); m == 3 && r.least() < 3 {
			t.Fatalf("cut at %d: m is 3, and a pack has %d parity shards", n, r.least())
		}
		for key, want := range objects {
			r.mustRead(key, want)
		}
		lose := set.m()
		r.survivesLossOf(lose, objects)
		if !r.st.members.Load().raising() && lose == 2 {
			r.tolerate(3)
		}
		if lose == 2 {
			r.raise()
		}
		r.needs(3)
		r.survivesLossOf(3, objects)
		r.close()
		r.st = nil
		if over {
			t.Logf("%d cuts", n)
			return
		}
	}
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// cutter lets so many changes reach the nodes, and none afterwards.
type cutter struct {
	mu    sync.Mutex
	armed bool
	left  int
}

func (c *cutter) arm(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed, c.left = true, n
}

// disarm reports whether something was cut off.
func (c *cutter) disarm() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = false
	return c.left < 0
}

func (c *cutter) may() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.armed {
		return nil
	}
	if c.left--; c.left < 0 {
		return node.ErrUnavailable
	}
	return nil
}

type cutNode struct {
	node.Store
	c *cutter
}

func (n cutNode) Put(ctx context.Context, by node.Authority, why node.Purpose, s node.Shard) (id.Instance, error) {
	if err := n.c.may(); err != nil {
		return 0, err
	}
	return n.Store.Put(ctx, by, why, s)
}

func (n cutNode) WriteFile(ctx context.Context, by node.Authority, name node.File, b []byte) error {
	if err := n.c.may(); err != nil {
		return err
	}
	return n.Store.WriteFile(ctx, by, name, b)
}

func (n cutNode) Delete(ctx context.Context, by node.Authority, k node.Key, inst id.Instance) error {
	if err := n.c.may(); err != nil {
		return err
	}
	return n.Store.Delete(ctx, by, k, inst)
}

// TestReadsAreConfirmedByMore: from the wish on a read is confirmed by w+1 nodes. A start that goes
// by the new number has n-w promises, so that any w nodes may know nothing of it.
func TestReadsAreConfirmedByMore(t *testing.T) {
	r := newRigOf(t, 7, 2, func(string) *crashfs.FS { return crashfs.New() })
	var silent atomic.Bool
	r.wrap = func(name string, st node.Store) node.Store {
		return &faulty{Store: st, promised: func() (node.Authority, error) {
			if silent.Load() && name > "n03" {
				return node.Authority{}, node.ErrUnavailable
			}
			return st.Promised(context.Background())
		}}
	}
	r.idle()
	r.put("a", random(1, 1000))
	silent.Store(true)
	if err := r.st.confirmOnce(); err != nil {
		t.Fatalf("three of seven confirm, m is 2: %v", err)
	}
	silent.Store(false)
	time.Sleep(retryAfter)
	r.tolerate(3)
	silent.Store(true)
	if err := r.st.confirmOnce(); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("three of seven confirm, m is being raised to 3: %v", err)
	}
	silent.Store(false)
	time.Sleep(retryAfter)
}

// fileNode refuses cluster files while it is told to.
type fileNode struct {
	node.Store
	refuse func() bool
}

func (n fileNode) WriteFile(ctx context.Context, by node.Authority, name node.File, b []byte) error {
	if name == node.ClusterFile && n.refuse() {
		return node.ErrUnavailable
	}
	return n.Store.WriteFile(ctx, by, name, b)
}

// TestNumberIsToldToAllButTheOldM: the file with the new number must be on all but m nodes, of the old
// m, before anything is sent behind it; otherwise the store stops, and the next start finishes the change
// from whatever nodes it finds.
func TestNumberIsToldToAllButTheOldM(t *testing.T) {
	for refusing, stops := range map[int]bool{2: false, 3: true, 7: true} {
		r := newRigOf(t, 7, 2, func(string) *crashfs.FS { return crashfs.New() })
		var on atomic.Bool
		r.wrap = func(name string, st node.Store) node.Store {
			return fileNode{st, func() bool { return on.Load() && name <= fmt.Sprintf("n%02d", refusing) }}
		}
		r.idle()
		objects := map[string][]byte{"big": random(1, 5<<20), "small": random(2, 5000)}
		for key, b := range objects {
			r.put(key, b)
		}
		r.tolerate(3)
		for { // but for the last step
			left, err := r.st.raiseLeft(context.Background(), 3)
			if err != nil {
				t.Fatal(err)
			}
			if left.all() == 0 {
				break
			}
			c := &collection{s: r.st, opt: JobOptions{Rate: 1 << 50, Now: true}, out: &CollectResult{}, raise: 3, passed: map[id.Pack]bool{}, report: func(uint64, uint64, string) {}}
			if err := c.raiseSome(context.Background(), left, &RaiseResult{}); err != nil {
				t.Fatal(err)
			}
		}
		on.Store(true)
		res, err := r.tryRaise()
		if stops != (err != nil) || stops != (r.st.Failure() != nil) {
			t.Fatalf("%d nodes refuse the cluster file: %+v, %v; the store stops: %v", refusing, res, err, r.st.Failure())
		}
		_ = r.st.Close(cancelled())
		r.st = nil
		r.closeNodes()
		r.engine = memkv.New(memkv.Options{})
		on.Store(false)
		// As many are away as the old number lets, those that know most: the record is found all the same.
		r.away = map[string]bool{"n06": true, "n07": true}
		r.open()
		if m := r.st.members.Load().m(); m != 3 {
			t.Errorf("%d nodes refused the cluster file: m is %d behind the next start", refusing, m)
		}
		r.close()
		r.away = nil
		r.open()
		r.mend()
		r.survivesLossOf(3, objects)
		r.close()
		r.st = nil
	}
}

// TestMemoryForMoreLosses: what wider packs take comes from the readers' share, and is there; with too
// little memory more losses are refused, since no later start would go through.
func TestMemoryForMoreLosses(t *testing.T) {
	for _, c := range []struct {
		total  int64
		losses int
		ok     bool
	}{{512 << 20, 3, true}, {512 << 20, 4, true}, {4 << 30, 4, true}, {128 << 20, 3, false}, {256 << 20, 4, false}} {
		m, err := newMemory(c.total, 2)
		if err != nil {
			t.Fatal(err)
		}
		was := m.coding.Limit() + m.repair.Limit()
		if err = m.widen(context.Background(), c.losses); (err == nil) != c.ok {
			t.Errorf("%d MiB, %d losses: %v", c.total>>20, c.losses, err)
		}
		if !c.ok {
			if !errors.Is(err, ErrInvalid) || m.readers.State().Used > 0 {
				t.Errorf("%d MiB, %d losses: %v, %d bytes are taken", c.total>>20, c.losses, err, m.readers.State().Used)
			}
			continue
		}
		coding, repair := m.sizes.Least(c.losses)
		if m.coding.Limit() < coding || m.repair.Limit() < repair || !m.coding.TryAcquire(coding) || !m.repair.TryAcquire(repair) {
			t.Errorf("%d MiB, %d losses: coding has %d, repair %d; want %d, %d", c.total>>20, c.losses, m.coding.Limit(), m.repair.Limit(), coding, repair)
		}
		if lent := m.coding.Limit() + m.repair.Limit() - was; lent != m.readers.State().Used {
			t.Errorf("%d MiB, %d losses: %d bytes came from the readers, who lent %d", c.total>>20, c.losses, lent, m.readers.State().Used)
		}
		if err := m.widen(context.Background(), c.losses); err != nil {
			t.Errorf("once more: %v", err)
		}
	}
}
